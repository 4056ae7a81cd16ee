import subprocess
import sys

CODE = (
    "from uae_lightning.models.library_pipelines import library_pipeline as of; print(of('StableDiffusion3Pipeline'))"
)


def test_the_pipeline_of_sd3_is_imported_without_a_word():
    # red without the names set before the import, or set on a module that has been replaced: transformers warns twice
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith("StableDiffusion3Pipeline'>\n")
