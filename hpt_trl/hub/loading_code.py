"""How a pushed model is loaded, as a block of Python for its card."""

from hpt_trl.hub.run_folder import RunFolder

_QUESTION = "What is 12 + 7?"


def loading_code(run: RunFolder, name: str, revision: str | None) -> str:
    """A block of Python that loads the model and uses it once.

    Args:
        name: of the repository, or the folder.
        revision: branch; None for the newest of `main`.
    """
    at = "" if revision is None else f', revision="{revision}"'
    if run.is_value_model:
        return _value_model(name, at)
    if run.stage == "reward":
        return _reward_model(run, name, at)
    if run.has_future_heads:
        return _future_heads(run, name, at)
    if run.is_vision_model:
        return _vision_model(run, name, at)
    return _language_model(run, name, at)


def _language_model(run: RunFolder, name: str, at: str) -> str:
    quantized = _quantized(run)
    if run.adapter is None:
        imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
        load = f'AutoModelForCausalLM.from_pretrained("{name}"{at}, dtype="auto")'
    else:
        bits = ", BitsAndBytesConfig" if quantized else ""
        imports = f"from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer{bits}"
        load = f'AutoPeftModelForCausalLM.from_pretrained("{name}"{at}, dtype="auto"{quantized})'
    return (
        f"{imports}\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}"{at})\n'
        f"model = {load}\n\n{_asked(run)}"
        "output = model.generate(**inputs, max_new_tokens=64)\n"
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'
        + (_value_head(name, at) if run.has_value_head else "")
    )


def _asked(run: RunFolder) -> str:
    if run.has_chat_template:
        return (
            f'messages = [{{"role": "user", "content": "{_QUESTION}"}}]\n'
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n'
            ")\n"
        )
    return f'inputs = tokenizer("{_QUESTION}", return_tensors="pt", return_token_type_ids=False)\n'


def _quantized(run: RunFolder) -> str:
    """The argument by which the base is loaded as it was in the training."""
    recipe = run.recipe
    if recipe.get("load_in_8bit"):
        return ", quantization_config=BitsAndBytesConfig(load_in_8bit=True)"
    if not recipe.get("load_in_4bit"):
        return ""
    kind = recipe.get("bnb_4bit_quant_type", "nf4")
    double = bool(recipe.get("use_bnb_nested_quant", False))
    dtype = recipe.get("dtype", "auto")
    computes = "" if dtype in ("auto", None) else f', bnb_4bit_compute_dtype="{dtype}"'
    return (
        f', quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="{kind}", '
        f"bnb_4bit_use_double_quant={double}{computes})"
    )


def _value_head(name: str, at: str) -> str:
    return (
        "\n\n# PPO's critic; a recipe of `stage: ppo` that names this model and has the same `critic` takes it up.\n"
        "from huggingface_hub import hf_hub_download\nfrom safetensors.torch import load_file\n\n"
        f'head = load_file(hf_hub_download("{name}", "value_head/value_head.safetensors"{at}))'
    )


def _future_heads(run: RunFolder, name: str, at: str) -> str:
    return (
        "from hpt_trl import load_with_future_heads\nfrom transformers import AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}"{at})\n'
        f'model = load_with_future_heads("{name}"{at}, dtype="auto")\n\n{_asked(run)}'
        "# The heads draft, the model decides: the tokens are those of plain greedy decoding.\n"
        "output = model.generate(**inputs, max_new_tokens=64, do_sample=False, use_mtp=True)\n"
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'
    )


def _vision_model(run: RunFolder, name: str, at: str) -> str:
    load = f'AutoModelForImageTextToText.from_pretrained("{name}"{at}, dtype="auto")'
    imports = "from PIL import Image\nfrom transformers import AutoModelForImageTextToText, AutoProcessor"
    if run.adapter is not None:
        base = run.base.name if run.base is not None else str(run.adapter.get("base_model_name_or_path"))
        of_base = "" if run.base is None or run.base.revision is None else f', revision="{run.base.revision}"'
        quantized = _quantized(run)
        bits = ", BitsAndBytesConfig" if quantized else ""
        imports = f"from peft import PeftModel\n{imports}{bits}"
        load = (
            "PeftModel.from_pretrained(\n"
            f'    AutoModelForImageTextToText.from_pretrained("{base}"{of_base}, dtype="auto"{quantized}),\n'
            f'    "{name}"{at},\n)'
        )
    return (
        f"{imports}\n\n"
        f'processor = AutoProcessor.from_pretrained("{name}"{at})\n'
        f"model = {load}\n\n"
        'image = Image.new("RGB", (56, 56), "white")  # yours\n'
        'parts = [{"type": "image"}, {"type": "text", "text": "What is to be seen?"}]\n'
        'text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)\n'
        'inputs = processor(text=[text], images=[image], return_tensors="pt")\n'
        "output = model.generate(**inputs, max_new_tokens=64)\n"
        'print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'
    )


def _reward_model(run: RunFolder, name: str, at: str) -> str:
    kind, labels, quantized = "AutoModelForSequenceClassification", "", ""
    imports = f"from transformers import {kind}, AutoTokenizer"
    if run.adapter is not None:
        kind, labels, quantized = "AutoPeftModelForSequenceClassification", ", num_labels=1", _quantized(run)
        bits = ", BitsAndBytesConfig" if quantized else ""
        imports = f"from peft import {kind}\nfrom transformers import AutoTokenizer{bits}"
    inputs = f'inputs = tokenizer("{_QUESTION} It is 19.", return_tensors="pt")\n'
    if run.has_chat_template:
        inputs = (
            "messages = [\n"
            f'    {{"role": "user", "content": "{_QUESTION}"}},\n'
            '    {"role": "assistant", "content": "It is 19."},\n]\n'
            'inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")\n'
        )
    return (
        f"{imports}\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}"{at})\n'
        f'model = {kind}.from_pretrained("{name}"{at}{labels}, dtype="auto"{quantized})\n\n{inputs}'
        "print(model(**inputs).logits.item())  # higher is better; only differences between answers count"
    )


def _value_model(name: str, at: str) -> str:
    return (
        "from hpt_trl.models.value_model import load_value_model\nfrom transformers import AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}"{at})\n'
        f'model = load_value_model("{name}"{at}, trainable=False).eval()\n\n'
        f'inputs = tokenizer("{_QUESTION} It is 19.", return_tensors="pt")\n'
        "print(model(**inputs).token_values)  # V after each token"
    )
