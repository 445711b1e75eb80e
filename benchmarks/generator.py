"""How fast the picture generator is, and in how much memory, beside diffusers called the same way in the same run.

    python benchmarks/generator.py                # pocket size, 64 px: Turbo (4 steps) against base (10 and 30 steps)
    python benchmarks/generator.py --real-size    # SDXL's own networks, random weights, bf16: ours against diffusers

Every contender is a process of its own, so that peak memory is its own; they take turns `--rounds` times. Writes random
weights into a temporary folder (7 GB with --real-size, which needs 9 GB of memory) and removes them. One line a
contender: pictures a second (best of its calls after one to warm up), peak memory, and the ratio to the first line;
below them what the pictures took in memory beside what `modules/picture_memory.py` reckons with.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

UNET_PARAMETERS = 2_567_463_684  # stabilityai/sdxl-turbo and stable-diffusion-xl-base-1.0
VAE_PARAMETERS = 83_653_863
# Name: whose code, which scheduler, steps, guidance.
TURBO_AND_BASE = {
    "turbo, 4 steps": ("ours", "turbo", 4, 0.0),
    "turbo, 4 steps, diffusers": ("diffusers", "turbo", 4, 0.0),
    "base, 10 steps": ("ours", "base", 10, 5.0),
    "base, 30 steps": ("ours", "base", 30, 5.0),
}
SCHEDULERS = {
    "turbo": ("EulerAncestralDiscreteScheduler", "trailing"),
    "base": ("EulerDiscreteScheduler", "leading"),
}


def real_unet():
    """The published UNet's config, written by hand."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def real_vae():
    """The published autoencoder's config."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        scaling_factor=0.13025,
        force_upcast=True,
    )


def fill(module, pool: torch.Tensor) -> None:
    """Random weights of a usual size, from a pool that is repeated: drawing billions takes minutes."""
    for parameter in module.parameters():
        if parameter.ndim < 2:
            parameter.data.fill_(1.0)
            continue
        flat = parameter.data.view(-1)
        for start in range(0, len(flat), len(pool)):
            part = flat[start : start + len(pool)]
            part.copy_(pool[: len(part)])
        parameter.data.mul_(parameter[0].numel() ** -0.5)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()


def write(folder: Path, real: bool, dim: int) -> None:
    """A pipeline folder for each scheduler (one set of weights), and an adapter in the published layout."""
    import diffusers
    from safetensors.torch import save_file

    from eegrecon.models.generators.pocket_sdxl import PocketDenoiser, build_unet, build_vae, ip_adapter_state_dict

    dtype = torch.bfloat16 if real else torch.float32
    torch.set_default_dtype(dtype)
    with torch.device("meta"):
        unet, vae = (real_unet(), real_vae()) if real else (build_unet(), build_vae())
    pool = torch.randn(2**22)
    for network in (unet, vae):
        fill(network.to_empty(device="cpu"), pool)
        print(f"{type(network).__name__}: {sum(p.numel() for p in network.parameters()):,} parameters", flush=True)
    if real:
        assert sum(p.numel() for p in unet.parameters()) == UNET_PARAMETERS
        assert sum(p.numel() for p in vae.parameters()) == VAE_PARAMETERS
    none = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipes = {}
    for name, (scheduler, spacing) in SCHEDULERS.items():
        steps = getattr(diffusers, scheduler)(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing=spacing
        )
        pipes[name] = diffusers.StableDiffusionXLPipeline(
            vae=vae, unet=unet, scheduler=steps, add_watermarker=False, **none
        )
    pipes["turbo"].save_pretrained(folder / "turbo", max_shard_size="20GB")
    (folder / "base").mkdir()
    for part in ("unet", "vae", "model_index.json"):
        (folder / "base" / part).symlink_to(folder / "turbo" / part)
    pipes["base"].scheduler.save_pretrained(folder / "base" / "scheduler")
    denoiser = PocketDenoiser(unet, dim=dim)
    adapter = {key: torch.zeros_like(value, device="cpu") for key, value in ip_adapter_state_dict(denoiser).items()}
    for value in adapter.values():
        flat = value.view(-1)
        flat.copy_(pool.repeat(len(flat) // len(pool) + 1)[: len(flat)] * 0.02)
    print(f"IP-Adapter: {sum(value.numel() for value in adapter.values()):,} parameters", flush=True)
    save_file(adapter, folder / "adapter.safetensors")


def contender(options: argparse.Namespace) -> None:
    """Load, make pictures, print one JSON line."""
    from eegrecon.models.generators.sdxl import SDXLGenerator
    from eegrecon.models.generators.sdxl_files import quiet_diffusers
    from eegrecon.modules.picture_memory import activation_bytes

    folder, dtype = Path(options.folder), torch.bfloat16 if options.real_size else torch.float32
    started = time.monotonic()
    args = {"num_inference_steps": options.steps, "guidance_scale": options.guidance, "size": options.size}
    embeds = torch.randn(options.pictures, options.dim, generator=torch.Generator().manual_seed(0))
    result = {}
    if options.who == "ours":
        adapter = str(folder / "adapter.safetensors")
        name = str(dtype).removeprefix("torch.")
        generator = SDXLGenerator(str(folder / options.kind), adapter, **args, torch_dtype=name)
        result["reckoned"] = activation_bytes(generator, options.pictures)

        def make(seeds):
            return generator(embeds, generators=seeds)

    else:
        from diffusers import StableDiffusionXLPipeline

        with quiet_diffusers():
            pipe = StableDiffusionXLPipeline.from_pretrained(folder / options.kind, dtype=dtype, add_watermarker=False)
            pipe.load_ip_adapter(str(folder), "", "adapter.safetensors", image_encoder_folder=None)
        pipe.set_progress_bar_config(disable=True)
        config = pipe.unet.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim

        def make(seeds):  # one at a time: in a batch every picture would see every embedding
            made = []
            for row, seed in enumerate(seeds):
                cond = embeds[row : row + 1, None].to(dtype)
                zeros = torch.zeros(1, 1, config.cross_attention_dim, dtype=dtype)
                made += pipe(
                    prompt_embeds=zeros,
                    pooled_prompt_embeds=zeros.new_zeros(1, pooled),
                    negative_prompt_embeds=zeros,
                    negative_pooled_prompt_embeds=zeros.new_zeros(1, pooled),
                    ip_adapter_image_embeds=[torch.cat([cond * 0, cond]) if options.guidance > 1 else cond],
                    height=options.size,
                    width=options.size,
                    num_inference_steps=options.steps,
                    guidance_scale=options.guidance,
                    generator=seed,
                    output_type="pt",
                ).images.float()
            return torch.stack(made)

    result["load"] = time.monotonic() - started
    network = generator if options.who == "ours" else pipe.unet
    for parameter in network.parameters():  # loaders map files: their pages count only when they are read
        parameter.view(-1)[::1024].sum()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(options.calls + 1):
        seeds = [torch.Generator().manual_seed(number) for number in range(options.pictures)]
        started = time.monotonic()
        pictures = make(seeds)
        times.append(time.monotonic() - started)
    assert pictures.isfinite().all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result |= {"seconds": min(times[1:] or times), "peak": peak * 1024, "grew": (peak - before) * 1024}
    print(json.dumps(result | {"mean": float(pictures.mean()), "first": pictures[0, :, 0, 0].tolist()}))


def main() -> None:
    """Write the weights, let every contender run, print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real-size", action="store_true")
    parser.add_argument("--size", type=int, default=0, help="pixels; default 64, real size 256")
    parser.add_argument("--steps", type=int, default=2, help="real size: denoising steps")
    parser.add_argument("--pictures", type=int, default=0, help="of a call; default 8, real size 1")
    parser.add_argument("--calls", type=int, default=0, help="timed calls of a process; default 3, real size 1")
    parser.add_argument("--rounds", type=int, default=1, help="how often each contender has its turn")
    parser.add_argument("--dir", default=None, help="where the temporary folder goes")
    parser.add_argument(
        "--turbo-and-base", action="store_true", help="that comparison at real size too (hours on a CPU)"
    )
    for name, kind in (("who", str), ("kind", str), ("folder", str), ("guidance", float), ("dim", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(Path(options.folder), options.real_size, options.dim)
        return
    if options.who:
        contender(options)
        return
    real = options.real_size
    size, pictures, calls = options.size or (256 if real else 64), options.pictures or (1 if real else 8), options.calls
    shared = ["--dim", "1024" if real else "256", *(["--real-size"] if real else [])]
    chosen = TURBO_AND_BASE
    if real and not options.turbo_and_base:
        chosen = {
            f"ours, {options.steps} steps": ("ours", "turbo", options.steps, 0.0),
            f"diffusers, {options.steps} steps": ("diffusers", "turbo", options.steps, 0.0),
        }
    with tempfile.TemporaryDirectory(dir=options.dir) as home:
        me = [sys.executable, __file__, "--folder", home, *shared]
        subprocess.run([*me, "--write"], check=True)
        found: dict[str, list[dict]] = {name: [] for name in chosen}
        for turn in range(options.rounds):
            for name in list(chosen)[:: -1 if turn % 2 else 1]:
                who, kind, steps, guidance = chosen[name]
                words = ["--who", who, "--kind", kind, "--steps", steps, "--guidance", guidance, "--size", size]
                words += ["--pictures", pictures, "--calls", calls or (1 if real else 3)]
                done = subprocess.run([*me, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"  {name}: {found[name][-1]['seconds']:.2f} s", flush=True)
    print(f"\n{size} px, {pictures} pictures a call, {os.environ.get('OMP_NUM_THREADS', 'all')} threads")
    first = None
    for name, results in found.items():
        rate = pictures / min(one["seconds"] for one in results)
        first = first or rate
        peak, load = max(one["peak"] for one in results), min(one["load"] for one in results)
        print(
            f"{name:28s} {rate:8.3f} pictures/s  ({rate / first:.2f} of the first)  peak {peak / 2**20:7.0f} MB  "
            f"loaded in {load:.1f} s"
        )
    for name, results in found.items():
        if "reckoned" in results[0]:
            grew, reckoned = (max(one[key] for one in results) / 2**20 for key in ("grew", "reckoned"))
            print(f"{name}: memory grew by {grew:.0f} MB for {pictures} pictures (reckoned with {reckoned:.0f} MB)")
    # in bfloat16 they differ by rounding: ours becomes float32 before the last step
    pairs = [results[0]["first"] for name, results in found.items() if name.partition(",")[0] in ("turbo", "ours")]
    pairs += [results[0]["first"] for name, results in found.items() if "diffusers" in name]
    print("first pixels, ours and diffusers:", pairs[0], pairs[-1])


if __name__ == "__main__":
    main()
