"""The diffusion prior: from the brain's tokens to image tokens that unCLIP can draw.

Brain tokens and CLIP's image tokens lie in different parts of the same space. A small transformer
learns to take noise off CLIP tokens, with the brain's tokens beside them; twenty steps of it turn
pure noise into image tokens. It predicts the clean tokens x₀, not the noise. Read with notebook 04.

    tokens        (batch, n, dim)   the condition, from the backbone     n = 256, dim = 1664
    noisy         (batch, n, dim)   √ᾱ_t · x₀ + √(1 − ᾱ_t) · ε           t = 0 … 99
    image_tokens  (batch, n, dim)   x₀, CLIP's tokens of the picture

Names of parameters are DALLE2-pytorch's, which the released checkpoints carry. Three numbers look
odd and matter: see `NORM_AFTER_ATTENTION_EPS`, `NoiseSchedule.ddim_step`, `RelativePositions`.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

# The released code picks a norm's eps by the dtype that reaches it, and half precision reached
# only this norm, in training and inference alike. It moves the output by some percent.
NORM_AFTER_ATTENTION_EPS = 1e-3
EPS = 1e-5
COSINE_SCALE = 16.0  # attention scores are 16 · cos(query, key)
ROTARY_CHANNELS = 32
BUCKETS, MAX_DISTANCE = 32, 128
DROP = 0.2  # how often training hides the condition, and how often the noisy tokens


class DiffusionPrior(nn.Module):
    """Noise schedule, network, loss and samplers. (Paper 2.2.)"""

    def __init__(
        self, tokens: int, dim: int, *, depth: int = 6, dim_head: int = 52, timesteps: int = 100
    ):
        super().__init__()
        self.noise_scheduler = NoiseSchedule(timesteps)
        self.net = PriorNetwork(tokens, dim, depth, dim_head)

    def forward(
        self,
        noisy: Float[Tensor, "batch n dim"],
        times: Int[Tensor, " batch"],
        tokens: Float[Tensor, "batch n dim"],
        *,
        guidance_scale: float = 1.0,
    ) -> Float[Tensor, "batch n dim"]:
        """Predicted image tokens.

        With guidance: null + scale · (predicted − null), where *null* hides both the condition and
        the noisy tokens. Official inference does without (scale 1).
        """
        predicted = self.net(noisy, times, tokens)
        if guidance_scale == 1.0:
            return predicted
        nothing = torch.zeros(len(noisy), dtype=torch.bool, device=noisy.device)
        null = self.net(noisy, times, tokens, keep_tokens=nothing, keep_noisy=nothing)
        return null + guidance_scale * (predicted - null)

    def loss(
        self,
        tokens: Float[Tensor, "batch n dim"],
        image_tokens: Float[Tensor, "batch n dim"],
        *,
        generator: torch.Generator,
        drop: float = DROP,
        rows: Int[Tensor, " batch"] | None = None,
        whole: int | None = None,
    ) -> Float[Tensor, ""]:
        """Mean squared error of the predicted image tokens at a random time per trial.

        The condition and the noisy tokens are each hidden from a share `drop` of the trials.
        Trials that are these `rows` of a batch of `whole` get what they would get in there.
        """
        batch, device = whole or len(tokens), generator.device
        times = torch.randint(
            len(self.noise_scheduler.betas), (batch,), generator=generator, device=device
        )
        keep = torch.rand(2, batch, generator=generator, device=device) >= drop
        noise = _normal_like(image_tokens, generator, batch)
        if rows is not None:
            times, keep, noise = times[rows.to(device)], keep[:, rows.to(device)], noise[rows]
        times, (keep_tokens, keep_noisy) = times.to(tokens.device), keep.to(tokens.device)
        noisy = self.noise_scheduler.add_noise(image_tokens, times, noise)
        predicted = self.net(noisy, times, tokens, keep_tokens=keep_tokens, keep_noisy=keep_noisy)
        return F.mse_loss(predicted.float(), image_tokens.float())

    def step(
        self,
        noisy: Float[Tensor, "batch n dim"],
        t: int,
        t_next: int,
        tokens: Float[Tensor, "batch n dim"],
        noise: Float[Tensor, "batch n dim"],
        *,
        every_time: bool = False,
        guidance_scale: float = 1.0,
    ) -> tuple[Float[Tensor, "batch n dim"], Float[Tensor, "batch n dim"]]:
        """One random step from time t to t_next: the next noisy tokens, and x₀ as seen now.

        DDIM with eta = 1, which may leave times out; DDPM where `every_time` is walked (t_next is
        then t − 1). `t_next < 0` ends the walk: at x₀, whatever the noise.
        """
        predicted = self(noisy, _times(t, noisy), tokens, guidance_scale=guidance_scale)
        if every_time:
            return self.noise_scheduler.ddpm_step(noisy, predicted, t, noise), predicted
        return self.noise_scheduler.ddim_step(noisy, predicted, t, t_next, noise), predicted

    @torch.no_grad()
    def sample(
        self,
        tokens: Float[Tensor, "batch n dim"],
        num_inference_steps: int | None = 20,
        *,
        generator: torch.Generator,
        guidance_scale: float = 1.0,
    ) -> Float[Tensor, "batch n dim"]:
        """Image tokens for the brain's tokens, from pure noise, as the released code samples them.

        Fewer steps than the schedule has: DDIM (20 steps make 19 calls, from t = 94). None, or as
        many as the schedule has: all of them, DDPM. Noise is drawn where the generator lives, so
        that a CPU generator gives the same pictures on every machine.
        """
        times = self.noise_scheduler.times(num_inference_steps)
        every_time = len(times) > len(self.noise_scheduler.betas)
        noisy = _normal_like(tokens, generator)
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            noise = _normal_like(tokens, generator) if t_next >= 0 else torch.zeros_like(tokens)
            walk = noisy, t, t_next, tokens, noise
            noisy, _ = self.step(*walk, every_time=every_time, guidance_scale=guidance_scale)
        return noisy

    @torch.no_grad()
    def sample_deterministic(
        self,
        tokens: Float[Tensor, "batch n dim"],
        num_inference_steps: int = 10,
        *,
        generator: torch.Generator,
        guidance_scale: float = 1.0,
    ) -> Float[Tensor, "batch n dim"]:
        """Image tokens from one draw of noise and no more: DDIM with eta = 0. Ours.

        As many calls of the network as steps, from t = 99, and every ᾱ at its own time (the
        released steps are off by one, see `NoiseSchedule.ddim_step`). Ten is half of the released
        calls and otherwise a choice. The released prior was never judged by these samples.
        """
        times = self.noise_scheduler.even_times(num_inference_steps)
        noisy = _normal_like(tokens, generator)
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            predicted = self(noisy, _times(t, noisy), tokens, guidance_scale=guidance_scale)
            noisy = self.noise_scheduler.deterministic_step(noisy, predicted, t, t_next)
        return noisy


class NoiseSchedule(nn.Module):
    """The cosine schedule as 13 buffers, which the released checkpoints carry along."""

    def __init__(self, timesteps: int = 100):
        super().__init__()
        k = torch.linspace(0, timesteps, timesteps + 1, dtype=torch.float64)
        curve = ((k / timesteps + 0.008) / 1.008 * math.pi / 2).cos().square()
        betas = (1 - curve[1:] / curve[:-1]).clamp(0, 0.999)
        alphas_cumprod = (1 - betas).cumprod(0)
        previous = F.pad(alphas_cumprod[:-1], (1, 0), value=1.0)
        variance = betas * (1 - previous) / (1 - alphas_cumprod)
        buffers = {
            "betas": betas,
            "alphas_cumprod": alphas_cumprod,
            "alphas_cumprod_prev": previous,
            "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod).sqrt(),
            "log_one_minus_alphas_cumprod": (1 - alphas_cumprod).log(),
            "sqrt_recip_alphas_cumprod": (1 / alphas_cumprod).sqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / alphas_cumprod - 1).sqrt(),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
            "posterior_mean_coef1": betas * previous.sqrt() / (1 - alphas_cumprod),
            "posterior_mean_coef2": (1 - previous) * (1 - betas).sqrt() / (1 - alphas_cumprod),
            "p2_loss_weight": torch.ones_like(betas),
        }
        for name, values in buffers.items():
            self.register_buffer(name, values.float())

    def times(self, num_inference_steps: int | None) -> list[int]:
        """Times to visit, ending in −1. ValueError where there are not that many."""
        total = len(self.betas)
        if num_inference_steps is None or num_inference_steps == total:
            return list(range(total - 1, -2, -1))
        if not 1 < num_inference_steps < total:
            raise ValueError(f"num_inference_steps must be 2 to {total}, got {num_inference_steps}")
        # On the CPU, since other devices round these numbers in their own way.
        steps = torch.linspace(-1, total, num_inference_steps + 1, device="cpu")[:-1]
        return steps.int().tolist()[::-1]

    def even_times(self, num_inference_steps: int) -> list[int]:
        """As many times as steps, evenly down from the last, then −1. ValueError if too many."""
        total = len(self.betas)
        if not 1 <= num_inference_steps <= total:
            raise ValueError(f"num_inference_steps must be 1 to {total}, got {num_inference_steps}")
        return [total * k // num_inference_steps - 1 for k in range(num_inference_steps, -1, -1)]

    def add_noise(
        self,
        image_tokens: Float[Tensor, "batch n dim"],
        times: Int[Tensor, " batch"],
        noise: Float[Tensor, "batch n dim"],
    ) -> Float[Tensor, "batch n dim"]:
        """√ᾱ_t · x₀ + √(1 − ᾱ_t) · ε."""
        signal = self.sqrt_alphas_cumprod[times][:, None, None]
        return (
            signal * image_tokens + self.sqrt_one_minus_alphas_cumprod[times][:, None, None] * noise
        )

    def ddim_step(
        self, noisy: Tensor, predicted: Tensor, t: int, t_next: int, noise: Tensor
    ) -> Float[Tensor, "batch n dim"]:
        """x₀·√α' + c₁·z + c₂·ε, with c₁ for eta = 1: as much fresh noise z as DDPM would add.

        Official: α and α' come from the array shifted by one while ε uses the plain one. Kept,
        since the released prior was always sampled so.
        """
        if t_next < 0:
            return predicted
        now, after = self.alphas_cumprod_prev[t], self.alphas_cumprod_prev[t_next]
        epsilon = noisy * self.sqrt_recip_alphas_cumprod[t] - predicted
        epsilon = epsilon / self.sqrt_recipm1_alphas_cumprod[t]
        c1 = ((1 - now / after) * (1 - after) / (1 - now)).sqrt()
        c2 = ((1 - after) - c1.square()).sqrt()
        return predicted * after.sqrt() + c1 * noise + c2 * epsilon

    def ddpm_step(
        self, noisy: Tensor, predicted: Tensor, t: int, noise: Tensor
    ) -> Float[Tensor, "batch n dim"]:
        """A draw from the posterior q(x_{t−1} | x_t, x₀); its mean at t = 0."""
        mean = self.posterior_mean_coef1[t] * predicted + self.posterior_mean_coef2[t] * noisy
        spread = (0.5 * self.posterior_log_variance_clipped[t]).exp() if t > 0 else 0.0
        return mean + spread * noise

    def deterministic_step(
        self, noisy: Tensor, predicted: Tensor, t: int, t_next: int
    ) -> Float[Tensor, "batch n dim"]:
        """√ᾱ'·x₀ + √(1 − ᾱ')·ε with the ε that makes `noisy` of x₀ at t; x₀ where t_next < 0."""
        if t_next < 0:
            return predicted
        signal, spread = self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod
        epsilon = (noisy - signal[t] * predicted) / spread[t]
        return signal[t_next] * predicted + spread[t_next] * epsilon


class PriorNetwork(nn.Module):
    """Reads [brain tokens, time, noisy tokens] and says what the last ones are without noise."""

    def __init__(self, tokens: int, dim: int, depth: int, dim_head: int):
        super().__init__()
        self.learned_query = nn.Parameter(torch.randn(tokens, dim) * dim**-0.5)
        self.null_brain_embeds = nn.Parameter(torch.randn(tokens, dim))
        self.null_image_embed = nn.Parameter(torch.randn(tokens, dim))
        self.to_time_embeds = nn.Sequential(
            nn.Sequential(SinusoidalEmbedding(dim), TimeMLP(dim)),
        )
        self.causal_transformer = Transformer(dim, depth, dim_head)

    def forward(
        self,
        noisy: Float[Tensor, "batch n dim"],
        times: Int[Tensor, " batch"],
        tokens: Float[Tensor, "batch n dim"],
        keep_tokens: Bool[Tensor, " batch"] | None = None,
        keep_noisy: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Predicted image tokens. Where `keep_…` is False, a learned null stands in."""
        tokens = _keep(tokens, keep_tokens, self.null_brain_embeds)
        noisy = _keep(noisy, keep_noisy, self.null_image_embed) + self.learned_query
        time = self.to_time_embeds(times.to(noisy.dtype))[:, None]
        sequence = torch.cat([tokens.to(noisy.dtype), time.to(noisy.dtype), noisy], dim=1)
        return self.causal_transformer(sequence)[:, -noisy.shape[1] :]


class SinusoidalEmbedding(nn.Module):
    """[sin, cos] of t · 10000^(−k / (dim/2 − 1)), k = 0 … dim/2 − 1."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, times: Float[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        half = self.dim // 2
        exact = torch.promote_types(times.dtype, torch.float32)  # half precision is too coarse
        k = torch.arange(half, device=times.device, dtype=exact)
        angles = times[:, None].to(exact) * torch.exp(-k * math.log(10000) / (half - 1))
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(times.dtype)


class TimeMLP(nn.Module):
    """dim -> 2 dim -> 2 dim -> dim with SiLU between."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU()),
            nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.SiLU()),
            nn.Linear(2 * dim, dim),
        )

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        return self.net(x)


class Transformer(nn.Module):
    """Attention and feed-forward in turn. Nothing is causal: the name is the checkpoints'."""

    def __init__(self, dim: int, depth: int, dim_head: int):
        super().__init__()
        self.rel_pos_bias = RelativePositions(heads=dim // dim_head)
        rotary = Rotary(dim_head)  # one module in every layer: stored six times, counted once
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(dim, dim_head, rotary), _feed_forward(dim)])
            for _ in range(depth)
        )
        self.norm = LayerNorm(dim, by_maximum=True)
        self.project_out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        bias = self.rel_pos_bias(x.shape[1])
        for attention, feed_forward in self.layers:
            x = attention(x, bias) + x
            x = feed_forward(x) + x
        return self.project_out(self.norm(x))


class Attention(nn.Module):
    """16 · cos(q, k) attention: many query heads, one key and value head, one learned null key."""

    def __init__(self, dim: int, dim_head: int, rotary: "Rotary"):
        super().__init__()
        heads = dim // dim_head
        self.heads = heads
        self.null_kv = nn.Parameter(torch.randn(2, dim_head))
        self.norm = LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head, bias=False)
        self.rotary_emb = rotary
        self.to_out = nn.Sequential(
            nn.Linear(heads * dim_head, dim, bias=False),
            LayerNorm(dim, eps=NORM_AFTER_ATTENTION_EPS),
        )

    def forward(
        self, x: Float[Tensor, "batch length dim"], bias: Float[Tensor, "heads length keys"]
    ) -> Float[Tensor, "batch length dim"]:
        x = self.norm(x)
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(x)[:, None].chunk(2, dim=-1)  # (batch, 1, length, dim_head)
        q, k = self.rotary_emb(q), self.rotary_emb(k)
        k, v = self._prepend_null(k, v)
        q, k = F.normalize(q.float(), dim=-1), F.normalize(k.float(), dim=-1)
        attended = F.scaled_dot_product_attention(
            *_same_dtype(q, k, v), attn_mask=bias.to(v.dtype), scale=COSINE_SCALE
        )
        return self.to_out(attended.transpose(1, 2).flatten(2))

    def _prepend_null(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        null_k, null_v = (null.to(k.dtype).expand(len(k), 1, 1, -1) for null in self.null_kv)
        k, v = torch.cat([null_k, k], dim=2), torch.cat([null_v.to(v.dtype), v], dim=2)
        return k.expand(-1, self.heads, -1, -1), v.expand(-1, self.heads, -1, -1)


class Rotary(nn.Module):
    """Turns neighboring pairs among the first 32 channels by the token's position times θ_j."""

    def __init__(self, dim_head: int):
        super().__init__()
        channels = min(ROTARY_CHANNELS, dim_head)
        exponents = torch.arange(0, channels, 2)[: channels // 2] / channels
        self.freqs = nn.Parameter(10000.0**-exponents, requires_grad=False)

    def forward(
        self, x: Float[Tensor, "batch heads length dim_head"]
    ) -> Float[Tensor, "batch heads length dim_head"]:
        positions = torch.arange(x.shape[2], device=x.device, dtype=torch.float32)
        angles = positions[:, None] * self.freqs.float()
        turned, rest = x.split([2 * len(self.freqs), x.shape[-1] - 2 * len(self.freqs)], dim=-1)
        a, b = turned[..., 0::2], turned[..., 1::2]
        sin, cos = angles.sin(), angles.cos()
        pairs = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)
        return torch.cat([pairs.flatten(-2), rest.to(pairs.dtype)], dim=-1)


class RelativePositions(nn.Module):
    """A learned bias per head for how far back a key lies.

    Key 0 is the null key, so key j is token j − 1 and a token sees itself at distance −1. Official
    all the same takes max(i − j, 0): itself and all that follows share bucket 0. Kept.
    """

    def __init__(self, heads: int):
        super().__init__()
        self.relative_attention_bias = nn.Embedding(BUCKETS, heads)

    def forward(self, length: int) -> Float[Tensor, "heads length keys"]:
        device = self.relative_attention_bias.weight.device
        queries = torch.arange(length, device=device)
        back = (queries[:, None] - torch.arange(length + 1, device=device)).clamp(min=0)
        return self.relative_attention_bias(self.bucket(back)).permute(2, 0, 1)

    @staticmethod
    def bucket(back: Int[Tensor, "length keys"]) -> Int[Tensor, "length keys"]:
        """One bucket per distance up to 15, then ever wider ones up to 31."""
        exact = BUCKETS // 2
        beyond = (back.clamp(min=exact) / exact).log() / math.log(MAX_DISTANCE / exact)
        wide = (exact + (beyond * (BUCKETS - exact)).long()).clamp(max=BUCKETS - 1)
        return torch.where(back < exact, back, wide)


class LayerNorm(nn.Module):
    """(x − mean) / √(variance + eps) · g. `by_maximum` first divides by the (signed) maximum."""

    def __init__(self, dim: int, *, eps: float = EPS, by_maximum: bool = False):
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))
        self.eps, self.by_maximum = eps, by_maximum

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        if self.by_maximum:
            x = x / x.amax(dim=-1, keepdim=True).detach()
        return F.layer_norm(x, self.g.shape, self.g, None, self.eps)


class SwiGLU(nn.Module):
    """a · SiLU(b) for the two halves a, b."""

    def forward(self, x: Float[Tensor, "*batch twice"]) -> Float[Tensor, "*batch once"]:
        a, b = x.chunk(2, dim=-1)
        return a * F.silu(b)


def _feed_forward(dim: int) -> nn.Sequential:
    up, down = nn.Linear(dim, 8 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)
    return nn.Sequential(
        LayerNorm(dim), up, SwiGLU(), nn.Identity(), nn.Identity(), down
    )  # the checkpoints count places 0 to 5; nothing sits at 3 and 4


def _keep(x: Tensor, keep: Tensor | None, null: Tensor) -> Tensor:
    return x if keep is None else torch.where(keep[:, None, None], x, null.to(x.dtype))


def _same_dtype(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.to(v.dtype), k.to(v.dtype), v


def _times(t: int, like: Tensor) -> Tensor:
    return torch.full((len(like),), t, device=like.device)


def _normal_like(x: Tensor, generator: torch.Generator, batch: int | None = None) -> Tensor:
    shape = (batch or len(x), *x.shape[1:])
    noise = torch.randn(shape, generator=generator, device=generator.device)
    return noise.to(x.device, x.dtype)
