"""Everything that can be chosen by name, and the plugins that offer it. Light.

Descriptors (`architecture`, `objective`, `optimizer`, `schedule`, `tokenizer_type`), the hook specifications, discovery
of installed plugins, loading, the hook manager, isolation of plugin code, and the doctor that checks plugins. No module
imports torch or a plugin; `discovery`, `loading` and `isolation` do not import pydantic, so nothing is re-exported.
"""
