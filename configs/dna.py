"""Classes of DNA sequences, one token a base, with any memory: tasks of GUE, and of GenomicBenchmarks where their files are.

Papers: DNABERT-2 and GUE, https://arxiv.org/abs/2306.15006; GenomicBenchmarks (table 4 of Titans), BMC Genomic Data 24, 25 (2023)
Data: folders of tables or FASTA files, see memtok_jax/data/dna.py; below MEMTOK_DATA_DIR or --data_dir, GUE in dna_gue and
      GenomicBenchmarks in genomic_benchmarks, as their publishers lay them out
Command: python train.py --config=dna:core_tata            (LMM)
         python train.py --config=dna:core_tata_mag        (TASK_MEMORY)
         python train.py --config=dna:cohn                 (GenomicBenchmarks: cohn, ensembl, regulatory, nontata, ocr)
         python train.py --config=dna:core_all --data=dna:FOLDER --config.data.sequence=512
    then python eval.py --workdir=runs/dna-core_tata --config.data.eval_split=test for accuracy and Matthews correlation
Hardware, time: 2 CPU cores, minutes each for core_tata, half an hour for the others (not measured yet)
Expected: not measured yet. Matthews correlation x 100 on the test split of core_all, core_notata, core_tata, 300_tata, tf, mouse:
    ridge on k-mers, printed beside, 62.0, 62.8, 80.3, 75.6, 61.1, 48.2; DNABERT-2 (pre-trained) 69.4, 68.0, 74.2, 71.6, 72.0, 56.8

Titans' neural memory on the five of GenomicBenchmarks, in the order above: accuracy 75.2, 89.6, 89.3, 96.6, 79.9.
On core_tata no pre-trained model of that paper beats the ridge: a model has shown nothing there below 80. Test sets of 613
sequences have a standard error near 2.5 points. Presets tf and mouse train on both strands.
Neighbours: titans_lmm, titans_mag.
"""

from __future__ import annotations

from memtok_jax.data.dna import ASK, DnaConfig
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig
from memtok_jax.training.memories import small_model

# Folder, tokens of a row, both strands.
GUE = {"core_tata": ("dna_gue/prom/prom_core_tata", 72, False), "core_all": ("dna_gue/prom/prom_core_all", 72, False),
       "core_notata": ("dna_gue/prom/prom_core_notata", 72, False), "300_tata": ("dna_gue/prom/prom_300_tata", 304, False),
       "tf": ("dna_gue/tf/0", 104, True), "mouse": ("dna_gue/mouse/0", 104, True)}
GENOMIC = {"cohn": ("genomic_benchmarks/human_enhancers_cohn", 504, False),
           "ensembl": ("genomic_benchmarks/human_enhancers_ensembl", 576, False),
           "regulatory": ("genomic_benchmarks/human_ensembl_regulatory", 808, False),
           "nontata": ("genomic_benchmarks/human_nontata_promoters", 256, False),
           "ocr": ("genomic_benchmarks/human_ocr_ensembl", 600, False)}
TASKS = GUE | GENOMIC
KINDS = ("mag", "mamba", "hymba", "window")
PRESETS = (*TASKS, *(f"{task}_{kind}" for task in GUE for kind in KINDS))


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    task, kind = preset, "lmm"
    if preset not in TASKS:
        task, _, kind = preset.rpartition("_")
    folder, tokens, reverse = TASKS[task]
    return Experiment(
        model=small_model(kind, ASK + 1, tokens=8, width=64, layers=2),
        data=DnaConfig(folder, tokens, reverse=reverse),
        optimizer=OptimizerConfig(learning_rate=1e-3, steps=1500, warmup_steps=100, final_fraction=0.0, weight_decay=0.1),
        training=TrainingConfig(batch=64, log_every=20, eval_every=100, checkpoint_every=100),
        evaluation=EvaluationConfig(batch=128, batches=8),
    )
