"""Trains the embedded default's backbones from scratch, resumable at any moment: `uae bootstrap`.

    uae bootstrap                                  all parts, hours; the same command goes on where it was
    uae bootstrap --only detector --scale 0.01     a hundredth of one part, to try it out

detector     judge of reports              reads pictures
verifier     reward of stage 3             a smaller one of the same kind, from another seed
text         encoder, first phase          reads and writes captions, sees nothing
encoder      vision and captioning phase   captions pictures, tersely and with omissions
decoder      web-like captions -> pictures on the states of the text phase, so it may run beside `encoder`
clip         judge of reports              pictures beside captions; tried on what the decoder's codec leaves
"""

from pathlib import Path

PARTS = ("detector", "verifier", "text", "encoder", "decoder", "clip")
SHIPPED = Path(__file__).parents[1] / "weights"
