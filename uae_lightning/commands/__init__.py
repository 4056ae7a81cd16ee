"""The commands of `uae`, one a file: options, and what is done with them."""

COMMANDS = {  # name -> one line of help, and the module whose `main` runs it
    "doctor": ("what this machine has, what will be slow on it, what is missing", ".commands.doctor"),
    "init": ("copy the YAMLs that come with the package to a folder of yours", ".commands.init"),
    "run": ("the stages of a YAML, one after the other, then report.html and summary.json", ".commands.run"),
    "plan": (
        "parameters, memory and time of each stage, and whether a card holds it, before anything is loaded",
        ".commands.plan",
    ),
    "fit": ("one stage alone", ".commands.fit"),
    "watch": ("how a run stands: stages, reward, time left, the last caption", ".commands.watch"),
    "validate": ("score one stage's round trip on the held-out pictures, without training", ".commands.validate"),
    "evaluate": (
        "measure a run, or the weights it starts from, by judges that were not the reward",
        ".commands.evaluate",
    ),
    "fault-costs": ("what a reward takes off for one fault of a drawing, in full and faint", ".commands.fault_costs"),
    "serve-reward": ("scores of any reward over HTTP, for runs elsewhere", ".commands.serve_reward"),
    "study": ("runs with several seeds, evaluated and compared: docs/results.md", ".commands.study"),
    "bootstrap": ("train the shipped backbones from scratch (hours; resumable)", ".commands.bootstrap"),
    "reconstruct": ("caption pictures and draw them again from the caption", ".commands.reconstruct"),
    "generate": ("draw pictures from texts", ".commands.generate"),
    "app": ("all that in the browser, and runs while they train (needs the extra `app`)", ".commands.app"),
    "caption": ("captions of pictures as JSONL, by a run or any vision-language model", ".commands.caption"),
    "export": (
        "a folder that transformers, diffusers, peft and ComfyUI load without this package",
        ".commands.export",
    ),
    "caption-data": (
        "long captions for your pictures by any vision-language model, filtered: a set for stage 1",
        ".commands.caption_data",
    ),
    "cache": ("latents and caption states of your pictures, computed once for stage 1", ".commands.cache"),
    "completion": ("a script that lets bash and zsh complete commands and options", ".commands.completion"),
    "import-release": ("weights of the authors of UAE -> folders to start from", ".commands.import_release"),
}
