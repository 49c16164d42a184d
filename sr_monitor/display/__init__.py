"""Where results are shown, and when: pictures over a run, and writers for dashboards.

Album([TensorBoardWriter("runs/1")]).show(record, prompts=prompts)
"""
