"""Everything that can be chosen by name, and the plugins that offer it. Light.

Descriptors (`architecture`, `objective`, `optimizer`, `tokenizer_type`, with `checks` of what authors get wrong), the
hook specifications, discovery of installed plugins, loading, the hook manager, isolation of plugin code, and the doctor
that explains what is wrong with a plugin. Importing a module of this package imports neither torch nor a plugin;
`discovery`, `loading` and `isolation` do not import pydantic either, which is why nothing is re-exported here.
"""
