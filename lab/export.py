"""Models from and to other people's programs: Hugging Face folders, and karpathy's llama2.c.

    model = from_hf("path/to/folder")                       # config.json and safetensors -> GPT, with equal logits
    to_hf(model, tok, "exported")                           # AutoModelForCausalLM and AutoTokenizer load the folder
    model, tok = from_llama2c("stories.bin", "tokenizer.bin")
    to_llama2c(model, tok, "stories.bin", "tokenizer.bin")  # for llama2.c's run

A folder is data: nothing in it is run, and no pickle is opened. What the other side cannot hold is refused with the
setting that stands in the way. None of this needs the package `transformers`.

Behind it, in lab/formats/, each importing only what stands above it:

    layer_form          what the layers of a model do, whatever words its config says it in
    plain               a model in the words of another format: settings and weights
    settings            checked reading of config.json
    families            Llama, Mistral, Qwen3, Gemma 2, OLMo 2, GPT-2: their settings and the names of their weights
    sentencepiece_file  the pieces and scores of a sentencepiece tokenizer
    hf_tokenizers       tokenizer.json
    hf_read, hf_write   the folders of Hugging Face
    llama2c             the files of llama2.c
"""

from lab.formats.hf_read import from_hf
from lab.formats.hf_write import to_hf
from lab.formats.llama2c import from_llama2c, to_llama2c

__all__ = ["from_hf", "from_llama2c", "to_hf", "to_llama2c"]
