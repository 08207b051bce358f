"""The recurrent models under the conformance kit."""

from foundry_core.testing import conformance

test_lstm = conformance("lstm")
test_gru = conformance("gru")
test_rnn = conformance("rnn")
