"""Keys and shapes of Latent Diffusion networks, written from their definition for any configuration."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]


def _affine(shapes: Shapes, name: str, *weight: int, bias: bool = True) -> None:
    shapes[f"{name}.weight"] = weight
    if bias:
        shapes[f"{name}.bias"] = weight[:1]


def _resnet(shapes: Shapes, name: str, inside: int, out: int, time: int, scale_shift: bool) -> None:
    _affine(shapes, f"{name}.in_layers.0", inside)
    _affine(shapes, f"{name}.in_layers.2", out, inside, 3, 3)
    _affine(shapes, f"{name}.emb_layers.1", out * (1 + scale_shift), time)
    _affine(shapes, f"{name}.out_layers.0", out)
    _affine(shapes, f"{name}.out_layers.3", out, out, 3, 3)
    if inside != out:
        _affine(shapes, f"{name}.skip_connection", out, inside, 1, 1)


def _transformer(shapes: Shapes, name: str, width: int, context: int, depth: int, linear: bool) -> None:
    one = () if linear else (1, 1)
    _affine(shapes, f"{name}.norm", width)
    _affine(shapes, f"{name}.proj_in", width, width, *one)
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attention, source in (("attn1", width), ("attn2", context)):
            _affine(shapes, f"{block}.{attention}.to_q", width, width, bias=False)
            _affine(shapes, f"{block}.{attention}.to_k", width, source, bias=False)
            _affine(shapes, f"{block}.{attention}.to_v", width, source, bias=False)
            _affine(shapes, f"{block}.{attention}.to_out.0", width, width)
        _affine(shapes, f"{block}.ff.net.0.proj", width * 8, width)
        _affine(shapes, f"{block}.ff.net.2", width, width * 4)
        for norm in ("norm1", "norm2", "norm3"):
            _affine(shapes, f"{block}.{norm}", width)
    _affine(shapes, f"{name}.proj_out", width, width, *one)


def diffusion_keys(
    *,
    model_channels: int = 32,
    channel_mult: tuple[int, ...] = (1, 2, 4, 4),
    num_res_blocks: int | tuple[int, ...] = 2,
    attention_resolutions: tuple[int, ...] = (4, 2, 1),
    transformer_depth: int = 1,
    context_dim: int = 24,
    use_linear_in_transformer: bool = True,
    use_scale_shift_norm: bool = False,
    in_channels: int = 4,
    hint_channels: int = 0,
) -> Shapes:
    """{key: shape} of UNetModel, or with `hint_channels` of DiffBIR's ControlNet."""
    shapes: Shapes = {}
    levels = len(channel_mult)
    blocks = (num_res_blocks,) * levels if isinstance(num_res_blocks, int) else num_res_blocks
    time, scale_shift = model_channels * 4, use_scale_shift_norm
    attention = (context_dim, transformer_depth, use_linear_in_transformer)
    _affine(shapes, "time_embed.0", time, model_channels)
    _affine(shapes, "time_embed.2", time, time)
    _affine(shapes, "input_blocks.0.0", model_channels, in_channels + hint_channels, 3, 3)
    width, skips, index = model_channels, [model_channels], 1
    for level, factor in enumerate(channel_mult):
        for _ in range(blocks[level]):
            _resnet(shapes, f"input_blocks.{index}.0", width, factor * model_channels, time, scale_shift)
            width = factor * model_channels
            if 2**level in attention_resolutions:
                _transformer(shapes, f"input_blocks.{index}.1", width, *attention)
            skips.append(width)
            index += 1
        if level + 1 < levels:
            _affine(shapes, f"input_blocks.{index}.0.op", width, width, 3, 3)
            skips.append(width)
            index += 1
    _resnet(shapes, "middle_block.0", width, width, time, scale_shift)
    _transformer(shapes, "middle_block.1", width, *attention)
    _resnet(shapes, "middle_block.2", width, width, time, scale_shift)
    if hint_channels:
        for i, skip in enumerate(skips):
            _affine(shapes, f"zero_convs.{i}.0", skip, skip, 1, 1)
        _affine(shapes, "middle_block_out.0", width, width, 1, 1)
        return shapes
    index = 0
    for level in reversed(range(levels)):
        for i in range(blocks[level] + 1):
            out = channel_mult[level] * model_channels
            _resnet(shapes, f"output_blocks.{index}.0", width + skips.pop(), out, time, scale_shift)
            width, after = out, 1
            if 2**level in attention_resolutions:
                _transformer(shapes, f"output_blocks.{index}.1", width, *attention)
                after = 2
            if level and i == blocks[level]:
                _affine(shapes, f"output_blocks.{index}.{after}.conv", width, width, 3, 3)
            index += 1
    _affine(shapes, "out.0", width)
    _affine(shapes, "out.2", in_channels, width, 3, 3)
    return shapes


def _vae_resnet(shapes: Shapes, name: str, inside: int, out: int) -> None:
    _affine(shapes, f"{name}.norm1", inside)
    _affine(shapes, f"{name}.conv1", out, inside, 3, 3)
    _affine(shapes, f"{name}.norm2", out)
    _affine(shapes, f"{name}.conv2", out, out, 3, 3)
    if inside != out:
        _affine(shapes, f"{name}.nin_shortcut", out, inside, 1, 1)


def _vae_attention(shapes: Shapes, name: str, width: int) -> None:
    _affine(shapes, f"{name}.norm", width)
    for projection in ("q", "k", "v", "proj_out"):
        _affine(shapes, f"{name}.{projection}", width, width, 1, 1)


def vae_keys(
    ch: int = 32,
    ch_mult: tuple[int, ...] = (1, 2, 4, 4),
    num_res_blocks: int = 2,
    z_channels: int = 4,
    attention_levels: tuple[int, ...] = (),
) -> Shapes:
    """{key: shape} of AutoencoderKL in the Latent Diffusion layout."""
    shapes: Shapes = {}
    width, last = ch, len(ch_mult) - 1
    _affine(shapes, "encoder.conv_in", ch, 3, 3, 3)
    for level, factor in enumerate(ch_mult):
        for i in range(num_res_blocks):
            _vae_resnet(shapes, f"encoder.down.{level}.block.{i}", width, factor * ch)
            width = factor * ch
            if level in attention_levels:
                _vae_attention(shapes, f"encoder.down.{level}.attn.{i}", width)
        if level != last:
            _affine(shapes, f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    for side in ("encoder", "decoder"):
        _vae_resnet(shapes, f"{side}.mid.block_1", width, width)
        _vae_attention(shapes, f"{side}.mid.attn_1", width)
        _vae_resnet(shapes, f"{side}.mid.block_2", width, width)
    _affine(shapes, "encoder.norm_out", width)
    _affine(shapes, "encoder.conv_out", 2 * z_channels, width, 3, 3)
    _affine(shapes, "decoder.conv_in", width, z_channels, 3, 3)
    for level in reversed(range(len(ch_mult))):
        for i in range(num_res_blocks + 1):
            _vae_resnet(shapes, f"decoder.up.{level}.block.{i}", width, ch_mult[level] * ch)
            width = ch_mult[level] * ch
            if level in attention_levels:
                _vae_attention(shapes, f"decoder.up.{level}.attn.{i}", width)
        if level:
            _affine(shapes, f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    _affine(shapes, "decoder.norm_out", width)
    _affine(shapes, "decoder.conv_out", 3, width, 3, 3)
    _affine(shapes, "quant_conv", 2 * z_channels, 2 * z_channels, 1, 1)
    _affine(shapes, "post_quant_conv", z_channels, z_channels, 1, 1)
    return shapes


def with_spade(shapes: Shapes, features: int = 24, hidden: int = 16) -> Shapes:
    """The keys of a UNet with StableSR's SPADE in every residual block."""
    full = dict(shapes)
    for key, (width, *_) in shapes.items():
        if key.endswith(".out_layers.3.weight"):
            spade = key.replace("out_layers.3.weight", "spade")
            _affine(full, f"{spade}.param_free_norm", width)
            _affine(full, f"{spade}.mlp_shared.0", hidden, features, 3, 3)
            _affine(full, f"{spade}.mlp_gamma", width, hidden, 3, 3)
            _affine(full, f"{spade}.mlp_beta", width, hidden, 3, 3)
    return full


def structure_keys(
    model_channels: int = 32,
    channel_mult: tuple[int, ...] = (1, 1, 2, 2),
    num_res_blocks: int = 2,
    attention_levels: tuple[int, ...] = (0, 1, 2),
    out_channels: int = 24,
    in_channels: int = 4,
) -> Shapes:
    """{key: shape} of StableSR's structure encoder."""
    shapes: Shapes = {}
    time = model_channels * 4

    def attention(name: str, width: int) -> None:
        _affine(shapes, f"{name}.norm", width)
        _affine(shapes, f"{name}.qkv", 3 * width, width, 1)
        _affine(shapes, f"{name}.proj_out", width, width, 1)

    _affine(shapes, "time_embed.0", time, model_channels)
    _affine(shapes, "time_embed.2", time, time)
    _affine(shapes, "input_blocks.0.0", model_channels, in_channels, 3, 3)
    width, index = model_channels, 1
    for level, factor in enumerate(channel_mult):
        if level:
            _affine(shapes, f"input_blocks.{index}.0.op", width, width, 3, 3)
            index += 1
        for _ in range(num_res_blocks):
            _resnet(shapes, f"input_blocks.{index}.0", width, factor * model_channels, time, False)
            width = factor * model_channels
            if level in attention_levels:
                attention(f"input_blocks.{index}.1", width)
            index += 1
        _resnet(shapes, f"fea_tran.{level}", width, out_channels, time, False)
    _resnet(shapes, "middle_block.0", width, width, time, False)
    attention("middle_block.1", width)
    _resnet(shapes, "middle_block.2", width, width, time, False)
    return shapes


def with_fusions(shapes: Shapes, levels: tuple[int, ...] = (2, 1), blocks: int = 2, growth: int = 16) -> Shapes:
    """The keys of an autoencoder with StableSR's fusions at some of the decoder's levels."""
    full = dict(shapes)
    for level in levels:
        fusion = f"decoder.fusion_layer_{level}"
        width = shapes[f"decoder.up.{level}.block.0.conv1.weight"][0]
        for name, inside in (("encode_enc_1", 2 * width), ("encode_enc_3", width)):
            _affine(full, f"{fusion}.{name}.norm1", inside)
            _affine(full, f"{fusion}.{name}.conv1", width, inside, 3, 3)
            _affine(full, f"{fusion}.{name}.norm2", width)
            _affine(full, f"{fusion}.{name}.conv2", width, width, 3, 3)
        _affine(full, f"{fusion}.encode_enc_1.conv_out", width, 2 * width, 1, 1)
        for block in range(blocks):
            for dense in (1, 2, 3):
                for i in range(5):
                    out = width if i == 4 else growth
                    conv = f"{fusion}.encode_enc_2.{block}.rdb{dense}.conv{i + 1}"
                    _affine(full, conv, out, width + i * growth, 3, 3)
    return full
