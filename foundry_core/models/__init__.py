"""Language models, from the loss to the folder that transformers opens.

`loss` computes the language-model loss for every architecture. `interface` is what the rest of core relies on in a
model; `building` makes one through its plugin, `description` is what a folder stores to build it again, `weights` its
tensors, `adapter` its surface for transformers, `folder` a saved model. `base` has what plugins derive from, `wrapped`
its counterpart for models of transformers, `cost` what a training step takes.
"""
