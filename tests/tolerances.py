"""Every tolerance of the tests, by name. None is ever widened to make a test pass."""

# The same float32 sums in another order: devices, microbatches, chunks.
REORDERED_SUM_RTOL = 1e-5
REORDERED_SUM_ATOL = 1e-6

# One formula written twice in float32.
SAME_FORMULA_RTOL = 2e-6

# Adafactor against T5X, measured by T5X's own re-runs under 1e-7 relative noise.
T5X_LOSS_RTOL = 1e-5
T5X_PARAMS_ATOL = 5e-5

# Models against T5X and Flaxformer, on rows that are not padding.
LOGITS_ATOL = 1e-4
LOSS_RTOL = 1e-5
# Relative to the greatest entry of the parameter's gradient.
GRADIENT_ATOL = 1e-4

# Scores and log probabilities of whole outputs, against those of others.
DECODED_SCORE_ATOL = 1e-3
