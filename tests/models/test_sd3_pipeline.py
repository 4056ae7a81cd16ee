import subprocess
import sys


def test_the_pipeline_of_sd3_is_imported_without_a_word():
    # red without the names set before the import: transformers warns of each of the two, in every run
    code = "from uae_lightning.models.sd3_pipeline import sd3_pipeline; print(sd3_pipeline().__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "StableDiffusion3Pipeline\n", "")
