"""The rows of the registry of quantities, parsed by rnndiag/store/quantities.py.

A group starts with [its name, owner of its quantities]. A quantity is one line
    name | dims | unit | scale [| how the ranks of a step are pooled, if not by their mean]
and below it, indented, one sentence of meaning. `-` means no dims: one number.
"""

TABLE = """
[contributions, layer]
direct_gradient_norm | time stat | loss/state | linear
    |e_t|: what the loss sends to the state at t through the layer's outputs only.
adjoint_norm | time stat | loss/state | linear
    |δ_t|: the total adjoint of the state at t.
adjoint_part_norm | part time | loss/state | linear
    Mean |δ_t| of each part of the state (h, c) apart.
contribution_norm | parameter time | loss/weight | linear
    |g_t|_F of the batch sum: what step t adds to the parameter's gradient.
contribution_sample_norm | parameter time | loss/weight | linear
    Mean over samples of |g_{t,b}|_F.
contribution_alignment | parameter time | cosine | linear
    cos(g_t, Σ g): whether step t pulls the way the total goes.
gate_contribution_norm | gate time | loss/weight | linear
    |g_t|_F of the rows of W_hh that belong to one gate.
state_norm | time stat | state | linear
    |s_t|: the size of the carried state.
valid_samples | time | sequences | linear | sum
    How many sequences of the batch are long enough to have step t.
gradient_norm | parameter | loss/weight | linear
    |G|: the norm of the gradient that autograd produced for the parameter in this backward
    pass.
residual | parameter | 1 | linear | worst
    |Σ_t g_t − G| / Σ_t |g_t|: the sum law's residual. It proves the contributions.
residual_of_gradient | parameter | 1 | linear | worst
    |Σ_t g_t − G| / |G|: the same residual over the gradient itself.
recursion_residual | - | 1 | linear | worst
    Worst relative |δ_t − e_t − J_{t+1}^T δ_{t+1}| at random times, J^T from torch.autograd.
forward_error | - | 1 | linear | worst
    Relative error of the states recomputed from the record against those of the forward
    pass.
nonfinite_states | time | units | linear | sum
    How many state entries at t are not finite, over the batch.
nonfinite_adjoints | time | units | linear | sum
    How many adjoint entries at t are not finite, over the batch.
[lags, layer]
credit_matrix | output source | loss/state | log
    ln C[u, s]: how much the loss at output u depends on the state at s; -inf where it does
    not.
credit_profile | lag profile_stat | 1 | log
    ln of the credit at lag d relative to lag 0, and its quantiles over outputs.
reach_error | - | steps | linear | error
    Standard error of the reach (of 90 % of the credit) where not all losses were followed back, the
    bias of the sample included; 0 where they were, NaN where it is unknown.
lag_gradient_norm | parameter lag | loss/weight | linear
    |c_d|: the part of the gradient that crosses exactly d steps.
tail_norm | parameter lag | loss/weight | linear
    |S_d|: what a sliding window of d steps leaves out of the gradient; d = 0 is the
    gradient itself.
window_bias | lag | 1 | linear
    |g_τ − g| / |g| of a sliding window of τ = lag steps, all recurrent parameters together,
    of all losses of this minibatch. In a sampled sweep each window is known to within a few steps.
window_cosine | lag | cosine | linear
    cos(g_τ, g) of a sliding window of τ = lag steps.
window_progress | lag | 1 | linear
    <g_τ, g>/|g|²: how much of a full step's progress a window of τ = lag steps keeps.
tail_mean_square | lag | (loss/weight)² | linear
    Unbiased |E S_d|² over sequences (may be negative); pooled over recordings it gives the
    systematic bias.
tail_mean_square_error | lag | (loss/weight)² | linear | error
    Standard error of tail_mean_square over sequences.
gradient_mean_square | - | (loss/weight)² | linear
    Unbiased |E g|² over sequences (may be negative): the denominator of the systematic
    bias.
noise | - | loss/weight | linear
    The noise yardstick σ: standard deviation of the minibatch gradient; NaN where it is not
    available.
full_gradient_norm | - | loss/weight | linear
    |g| over all recurrent parameters together, of the sampled losses and sequences.
chunk_size | chunk | steps | linear
    The chunk sizes k at which chunked truncation was scored.
chunk_bias | chunk | 1 | linear
    |g_k − g| / |g| of truncation in chunks of k steps, on this minibatch.
chunk_cosine | chunk | cosine | linear
    cos(g_k, g) of truncation in chunks of k steps.
chunk_mean_square | chunk | (loss/weight)² | linear
    Unbiased |E (g_k − g)|² over sequences (may be negative): pooled over recordings it gives the
    systematic bias of chunks.
chunk_mean_square_error | chunk | (loss/weight)² | linear | error
    Standard error of chunk_mean_square over sequences.
seam_credit | lag | 1 | log
    ln of the credit profile across the seam where training cuts the state: of the losses of one
    chunk, into the chunks before it that were kept.
seam_steps | seam | steps | linear | lowest rank
    Steps of the chunk itself, and of the chunks before it that were kept.
seam_share | - | share | linear
    Share of all credit of a chunk's losses that lies at states before the seam.
seam_bias | - | 1 | linear
    |g_beyond| / |g|: what the steps before the seam would add to the gradient of a chunk's losses,
    on this minibatch.
seam_cosine | - | cosine | linear
    Cosine of the gradient of a chunk's losses with and without what lies before the seam.
seam_mean_square | - | (loss/weight)² | linear
    Unbiased |E g_beyond|² over sequences (may be negative): pooled over recordings it gives the
    seam's systematic bias.
seam_mean_square_error | - | (loss/weight)² | linear | error
    Standard error of seam_mean_square over sequences.
seam_whole_mean_square | - | (loss/weight)² | linear
    Unbiased |E g|² over sequences of the gradient across the seam: the denominator of the seam's
    systematic bias.
seam_whole_mean_square_error | - | (loss/weight)² | linear | error
    Standard error of seam_whole_mean_square over sequences.
seam_window_bias | lag | 1 | linear
    window_bias of a chunk's losses with the chunks before it: what a window longer than the chunk
    would give.
seam_window_cosine | lag | cosine | linear
    window_cosine of a chunk's losses with the chunks before it.
seam_tail_mean_square | lag | (loss/weight)² | linear
    tail_mean_square of a chunk's losses with the chunks before it.
seam_tail_mean_square_error | lag | (loss/weight)² | linear | error
    Standard error of seam_tail_mean_square over sequences.
seam_gradient_mean_square | - | (loss/weight)² | linear
    gradient_mean_square of a chunk's losses with the chunks before it, of the losses looked at.
lag_samples | sampling | 1 | linear | lowest rank
    What the sweep sampled: sequences of all, outputs of all, lags of all (six numbers).
[estimators, layer]
estimator_score | estimator score | 1 | linear
    Bias, spread, cosine, cost and memory of each estimator of the gradient, relative to the
    full gradient.
[jacobians, layer]
product_frobenius | lag stat | 1 | log | log mean
    ln |Φ(t, t-d)|_F of the product of d Jacobians.
product_spectral | lag stat | 1 | log | log mean
    ln of the largest singular value of the product of d Jacobians.
product_smallest | lag stat | 1 | log | log mean
    ln of the smallest singular value of the product of d Jacobians.
product_median | lag stat | 1 | log | log mean
    Median ln singular value of the product of d Jacobians.
product_bound | lag stat | 1 | log | log mean
    ln Π σ(D_j) σ(W_hh): the textbook's bound on the product's norm (Elman cells only).
singular_spectrum | pair exponent | 1 | log | log mean
    ln of all singular values of the Jacobian product of chosen pairs.
spectral_radius | block | 1 | linear
    ρ(W_hh) of each gate's block of W_hh.
spectral_norm | block | 1 | linear
    σ(W_hh) of each gate's block of W_hh.
recurrent_eigenvalues | block unit component | 1 | linear | lowest rank
    Eigenvalues of each gate's block of W_hh.
jacobian_radius | time stat | 1 | linear
    ρ(J_t): spectral radius of the state Jacobian at t.
[lyapunov, layer]
lyapunov_exponents | exponent part_stat | 1/step | linear
    λ_i along the data, with standard errors over sequences and over time blocks.
finite_time_exponents | lag exponent | 1/step | linear
    Finite-time exponents over windows of d steps.
kaplan_yorke | - | 1 | linear
    Kaplan-Yorke dimension of the exponents.
log_det_residual | - | 1 | linear | worst
    |Σ λ_i − mean ln |det J_t||: the proof of the spectrum (all exponents only).
[gates, layer]
gate_low | gate | share | linear
    Share of a gate's activations below 0.05.
gate_high | gate | share | linear
    Share of a gate's activations above 0.95.
gate_mean | gate time | 1 | linear
    Mean activation of a gate over samples and units.
forget_time | stat | steps | linear
    Time constants 1/(1-f) of the forget gate over units, samples and steps.
activation_derivative | time stat | 1 | linear
    D_t: derivative of the state's activation function.
saturated_units | - | share | linear
    Share of units whose activation derivative stays below 0.05 on average.
dead_units | - | share | linear
    Share of relu units that are zero at every step of every sequence.
[swing, layer]
swing | - | loss | linear
    Σ |⟨e_t, h_t of the next sequence − h_t⟩|: how much the loss would change, to first order, if the
    sequences of the batch exchanged their states.
input_spread | - | input | linear
    Standard deviation of the layer's inputs: root of the mean variance of their entries.
input_mean | - | input | linear
    Mean of the layer's inputs over steps and sequences: root mean square over their entries.
[steps, layer]
update_ratio | - | 1 | linear
    |Δθ| / |θ|: how much this optimizer step changed the layer's recurrent weights.
weight_norm | - | weight | linear
    |θ| of the layer's recurrent weights after this step.
weight_growth | - | 1 | linear
    |θ| / |θ_0|: the size of the layer's recurrent weights relative to the start of the fit.
[steps, model]
other_update_ratio | - | 1 | linear
    |Δθ| / |θ| of all weights that are not recurrent.
stepped_gradient_norm | - | loss/weight | linear
    Norm of all gradients as the optimizer used them, after clipping.
monitored_metric | - | 1 | linear
    The metric that a callback monitors (early stopping, checkpoints), as it was logged last.
[training, model]
loss | - | loss | linear
    The loss of this step, as it was logged or returned.
total_gradient_norm | - | loss/weight | linear
    Norm of all gradients after unscaling and before clipping.
clip_threshold | - | loss/weight | linear
    The norm at which gradients are clipped; NaN without clipping.
learning_rate | - | 1 | linear
    Learning rate of the first parameter group.
history_step | history | steps | linear | lowest rank
    Training steps since the last recording: the ring of cheap per-step scalars.
history_loss | history | loss | linear
    Loss at each of those steps.
history_gradient_norm | history | loss/weight | linear
    Gradient norm before clipping at each of those steps.
history_clipped | history | 1 | linear
    1 where the step was clipped, else 0.
history_learning_rate | history | 1 | linear
    Learning rate at each of those steps.
window_in_use | - | steps | linear
    The longest stretch of steps through which this backward pass carried a gradient: the
    user's own window.
sequence_gradient_norm | sequence | loss/weight | linear | lowest rank
    Gradient norm of the sequences that cause most of the gradient.
sequence_index | sequence | 1 | linear | lowest rank
    Which sequences of the batch these are.
sequence_peak_time | sequence | steps | linear | lowest rank
    The time step at which each of them contributes most.
overhead_seconds | - | s | linear
    Time that the diagnostics of this recording took.
overhead_share | - | share | linear
    Time that all diagnostics so far took, as a share of training time.
[need, layer]
need_group | need_group need_group_stat | loss | linear | lowest rank
    memory_need: what the inputs low..high steps back add to all nearer ones and to the state, on sequences that the
    skips were not fitted to.
need_part | need_part need_part_stat | loss | linear | lowest rank
    memory_need: gains of the present state, of the inputs nearer than the limit, and of those beyond it.
need_use | need_use need_use_stat | loss | linear | lowest rank
    memory_need: rise of the loss where an output sees the last inputs only.
need_fact | need_fact | 1 | linear | lowest rank
    memory_need: loss L, scale R (the loss without memory), smallest share that would have been found, used memory,
    burn-in, limit and where it comes from (0 given, 1 window, 2 reach), and the size of the data; NaN: not known.
[need_screen, layer]
need_screen | need_screen_kind screen_lag need_screen_stat | share | linear | lowest rank
    Screen of past inputs: the share of the error that a skip from so many steps back would explain (linear, product
    with the present, sum over lag .. 2 lag - 1), after the present, and its standard deviation where the past does not
    help.
[memory, layer]
state_map | token component2 | 1 | linear | lowest rank
    States along held-out text, projected on their first two principal components.
state_map_variance | component2 | share | linear | lowest rank
    Share of the states' variance that each component holds.
"""
