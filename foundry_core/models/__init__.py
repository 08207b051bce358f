"""Language models, from the loss to the folder that transformers opens.

`loss` computes the language-model loss for every architecture. `interface` is the model that the rest of core uses,
`building` makes one through its plugin, `adapter` wraps it for transformers (`adapted_model`, without its head or with
another one: `adapted_heads`), `folder` saves and opens it. Plugins derive from `base`, or from `wrapped` for models of
transformers. `cost` estimates a training step.
"""
