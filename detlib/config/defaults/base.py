"""Data, optimisation, evaluation and output: options that every model shares."""

from typing import Any

from detlib.config.defaults.part import Parts

__all__ = ["BASE"]

INPUT = {
    # Shortest side of a training image; one of the values, or between two of them, is drawn per image.
    "MIN_SIZE_TRAIN": (800,),
    # How it is drawn: "choice" among the values, "range" between two of them.
    "MIN_SIZE_TRAIN_SAMPLING": "choice",
    # The longest side is kept below this, even if the shortest then comes out smaller.
    "MAX_SIZE_TRAIN": 1333,
    # The same for testing; a MIN_SIZE_TEST of 0 turns resizing off.
    "MIN_SIZE_TEST": 800,
    "MAX_SIZE_TEST": 1333,
    # "horizontal", "vertical" or "none".
    "RANDOM_FLIP": "horizontal",
    "CROP": {
        "ENABLED": False,
        # "relative", "relative_range", "absolute" or "absolute_range": what SIZE means.
        "TYPE": "relative_range",
        # Height and width, as parts of the image or in pixels.
        "SIZE": [0.9, 0.9],
        # Largest part of a crop that one class of a label map may have; 1 for any.
        "SINGLE_CATEGORY_MAX_AREA": 1.0,
    },
    # Large scale jitter (arXiv:2012.07177) in training, in place of MIN_SIZE_TRAIN and MAX_SIZE_TRAIN: fit the image
    # into SIZE (height, width) times a factor between the two scales, then crop it to SIZE.
    "LARGE_SCALE_JITTER": {
        "ENABLED": False,
        "MIN_SCALE": 0.1,
        "MAX_SCALE": 2.0,
        "SIZE": [1024, 1024],
        # Fill smaller images up to SIZE with grey, which then is part of the image.
        "PAD": True,
    },
    # Channel order or colour space that the model is fed: "BGR", "RGB", "L", ...
    "FORMAT": "BGR",
    # What masks are loaded as: "polygon" or "bitmask".
    "MASK_FORMAT": "polygon",
    # Augmentations by name, applied in turn: [{NAME: RandomResizedCrop, SIZE: 224}, {NAME: RandomFlip}]. Empty takes
    # the options above, which otherwise count for nothing, FORMAT and MASK_FORMAT aside.
    "AUGMENTATIONS_TRAIN": Parts(),
    "AUGMENTATIONS_TEST": Parts(),
    # Views of each training image, for self-supervised learning, in place of all that but FORMAT: a list of
    # {COUNT: 2, AUGMENTATIONS: [{NAME: RandomResizedCrop, SIZE: 224}, ...]}, in whose order they come. Annotations are
    # not used, hence ASPECT_RATIO_GROUPING and FILTER_EMPTY_ANNOTATIONS of DATALOADER neither. An entry may also have
    # SPLIT: {NAME: GridPatches, PATCH_SIZE: 64} or {NAME: QuarterTurns}, which makes several views of each;
    # MASK: {NAME: RandomSquares, ...} or {NAME: RandomBlocks, ...}, the patches to hide;
    # TARGET: {SIZE: 112, INTERP: lanczos}, the same crop in another size.
    "VIEWS": Parts(),
}

DATASETS = {
    # Names of registered datasets; several are concatenated.
    "TRAIN": (),
    # Files of precomputed proposals, one for each training dataset, when MODEL.LOAD_PROPOSALS is on.
    "PROPOSAL_FILES_TRAIN": (),
    # How many of the best precomputed proposals to use per training image.
    "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
    # Datasets to evaluate on, one after the other.
    "TEST": (),
    "PROPOSAL_FILES_TEST": (),
    "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
    # Datasets declared here, not in code: {NAME, TYPE: coco, JSON, IMAGES}, {NAME, TYPE: images, IMAGES}; with keys of
    # their own: sem_seg, sem_seg_folders, coco_panoptic, pascal_voc, image_folder, cifar10, cifar100, voc_multi_label.
    "REGISTER": Parts(),
}

DATALOADER = {
    # Worker processes of each training process; 0 loads in the training process itself.
    "NUM_WORKERS": 4,
    # Batch wide images with wide ones and tall with tall, which saves padding.
    "ASPECT_RATIO_GROUPING": True,
    # By its name in SAMPLER_REGISTRY: "TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler",
    # "UniformClassSampler" (each class equally often), "RepeatAugSampler", "UniformClusterSampler" (each pseudo label
    # equally often), "ReplacementSampler" or one of your own.
    "SAMPLER_TRAIN": "TrainingSampler",
    # RepeatFactorTrainingSampler: images of categories rarer than this part of the images are repeated.
    "REPEAT_THRESHOLD": 0.0,
    # ... by the square root of the factor rather than by the factor itself.
    "REPEAT_SQRT": True,
    # RandomSubsetTrainingSampler: train on this part of the images, above 0 and up to 1.
    "RANDOM_SUBSET_RATIO": 0.0,
    # RepeatAugSampler: how often in a row each image comes, differently augmented.
    "NUM_REPEATS": 3,
    # Leave out training images that have no object.
    "FILTER_EMPTY_ANNOTATIONS": True,
    # What a training image that cannot be read does: "raise" stops the training and names it, "skip" counts, reports
    # and replaces it.
    "ON_CORRUPT": "raise",
    # Seconds after which a worker that gives nothing counts as hanging: the training fails and names its sample. 0
    # waits for ever.
    "TIMEOUT": 600,
    # Look for mistakes in the training data, briefly, before the first step; tools/check_data.py does it thoroughly.
    "CHECK": True,
}

SOLVER = {
    # Name of the learning rate schedule, such as "WarmupMultiStepLR" or "WarmupCosineLR".
    "LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    # Length of training, in batches.
    "MAX_ITER": 40000,
    # The same in passes over the training data, in place of MAX_ITER, STEPS, WARMUP_ITERS, CHECKPOINT_PERIOD and
    # TEST.EVAL_PERIOD, which are then computed from the number of images; 0, or () for steps, leaves those.
    "MAX_EPOCH": 0.0,
    "STEP_EPOCHS": (),
    "WARMUP_EPOCHS": 0.0,
    "CHECKPOINT_EPOCHS": 0.0,
    # Learning rate after warm-up, and the one that a cosine schedule ends with.
    "BASE_LR": 0.001,
    "BASE_LR_END": 0.0,
    # "SGD", with MOMENTUM and NESTEROV; "LARS", with MOMENTUM, for large batches; or "AdamW", with BETAS.
    "OPTIMIZER": "SGD",
    "MOMENTUM": 0.9,
    "NESTEROV": False,
    "BETAS": (0.9, 0.999),
    # Factor on the learning rate from each transformer layer to the one below (ViT); 1 gives all layers the same rate.
    "LAYER_DECAY": 1.0,
    # Weight decay in general, and that of normalisation layers.
    "WEIGHT_DECAY": 0.0001,
    "WEIGHT_DECAY_NORM": 0.0,
    # Multi-step schedules multiply the rate by GAMMA at each of STEPS.
    "GAMMA": 0.1,
    "STEPS": (30000,),
    # Number of decays of a schedule with fixed distances between them.
    "NUM_DECAYS": 3,
    # Warm-up starts at BASE_LR times the factor and takes this many iterations, "linear" or "constant".
    "WARMUP_FACTOR": 0.001,
    "WARMUP_ITERS": 1000,
    "WARMUP_METHOD": "linear",
    # Fixed-distance schedule: stretch the distances when the length of training is rescaled.
    "RESCALE_INTERVAL": False,
    # Iterations between checkpoints.
    "CHECKPOINT_PERIOD": 5000,
    # How many of them to keep; 0 for all. With 1, there is none to go back to if the disk damages it.
    "CHECKPOINT_KEEP": 0,
    # Images per batch, over all processes.
    "IMS_PER_BATCH": 16,
    # In how many parts a batch goes through the model, one after the other, before the optimizer's step. More of them
    # need less memory; layers that look at the batch as a whole, such as batch norm, see a part.
    "ACCUMULATION_STEPS": 1,
    # How processes share the model: "ddp", each has all of it; or "fsdp", each keeps a part (FSDP2).
    "PARALLEL": "ddp",
    # Number of processes that the values here were written for; with another number, batch size, learning rate and
    # schedule are scaled. 0 turns this off.
    "REFERENCE_WORLD_SIZE": 0,
    # Factor on the learning rate of biases, and their weight decay (None: as other weights).
    "BIAS_LR_FACTOR": 1.0,
    "WEIGHT_DECAY_BIAS": None,
    # Parameters without weight decay, by the last part of their name, such as "pos_embed".
    "NO_WEIGHT_DECAY": [],
    # Options of single parameters, [{PARAMS: "^(neck|head)\\.", LR_FACTOR: 5.0}], that go over all of the above. PARAMS
    # is a regular expression that is found in their full names; MAX_NDIM: 1 leaves only biases and scales of
    # normalisation. LR_FACTOR multiplies the rate; WEIGHT_DECAY and MOMENTUM replace those of the other parameters;
    # FIXED_LR: true keeps the rate out of warm-up and schedule. Of equal options, the last one counts.
    "PARAM_OPTIONS": Parts(),
    "CLIP_GRADIENTS": {
        "ENABLED": False,
        # "value" clips each entry, "norm" the norm of each parameter, "full_model" that of all together.
        "CLIP_TYPE": "value",
        "CLIP_VALUE": 1.0,
        # Which norm; inf is allowed.
        "NORM_TYPE": 2.0,
    },
    # Automatic mixed precision, in "float16" with scaling of the loss, or in "bfloat16".
    "AMP": {"ENABLED": False, "PRECISION": "float16"},
}

TEST = {
    # Checked after evaluation: lists of [task, metric, expected value, tolerance].
    "EXPECTED_RESULTS": [],
    # Iterations between evaluations during training; 0 evaluates at the end only.
    "EVAL_PERIOD": 0,
    # The same in passes over the training data, see SOLVER.MAX_EPOCH.
    "EVAL_EPOCHS": 0.0,
    # Also measure the losses on the test datasets that have annotations, at each evaluation.
    "VALIDATION_LOSS": False,
    # The metric by which "model_best" is kept, such as "bbox/AP" or "validation_loss"; "" takes the first of the first
    # evaluation, "none" keeps no best model. MODE is "max", "min", or "auto": less is better for names with "loss".
    "BEST": {"METRIC": "", "MODE": "auto"},
    # Stop when that metric has not improved by MIN_DELTA in PATIENCE evaluations in a row; 0 never does.
    "EARLY_STOPPING": {"PATIENCE": 0, "MIN_DELTA": 0.0},
    # Standard deviation of each keypoint in COCO's similarity; empty takes those of COCO's 17.
    "KEYPOINT_OKS_SIGMAS": [],
    # Highest number of detections kept per image.
    "DETECTIONS_PER_IMAGE": 100,
    # Test-time augmentation.
    "AUG": {
        "ENABLED": False,
        "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
        "MAX_SIZE": 4000,
        "FLIP": True,
    },
    # Recompute the statistics of batch normalisation on this many batches before evaluating.
    "PRECISE_BN": {"ENABLED": False, "NUM_ITER": 200},
}

# A running average of the weights (exponential, arXiv:1703.01780), kept beside those that are trained.
MODEL_EMA = {
    "ENABLED": False,
    # Share of the average that a step keeps, once it has warmed up.
    "DECAY": 0.9998,
    # Evaluate, and keep the best model, with the averaged weights.
    "USE_FOR_EVAL": True,
}

TRACKER_HEADS = {
    # By its name in TRACKER_HEADS_REGISTRY.
    "TRACKER_NAME": "BBoxIOUTracker",
    # Size of the frames, in pixels; to be set.
    "VIDEO_HEIGHT": 0,
    "VIDEO_WIDTH": 0,
    # No lost object is kept beyond this many objects in a frame.
    "MAX_NUM_INSTANCES": 200,
    # Consecutive frames for which an object that is not detected is kept.
    "MAX_LOST_FRAME_COUNT": 0,
    # Lost objects that are smaller, relative to the side of the frame, are dropped.
    "MIN_BOX_REL_DIM": 0.02,
    # Lost objects that were detected in no more frames than this are dropped.
    "MIN_INSTANCE_PERIOD": 1,
    # Lowest overlap of the boxes of one object in two frames.
    "TRACK_IOU_THRESHOLD": 0.5,
}

BASE: dict[str, Any] = {
    # Version of the config format; older files are upgraded when read.
    "VERSION": 2,
    # Modules to import before the values of a config file are read: "package.module", "./file.py" beside the config, or
    # "detlib.projects.foo" for the package projects/Foo/foo. They run as code. Those of base files come first.
    "CUSTOM_IMPORTS": {
        "IMPORTS": [],
        # Leave out what cannot be imported, with a warning.
        "ALLOW_FAILED_IMPORTS": False,
    },
    "INPUT": INPUT,
    "DATASETS": DATASETS,
    "DATALOADER": DATALOADER,
    "SOLVER": SOLVER,
    "TEST": TEST,
    "MODEL_EMA": MODEL_EMA,
    "TRACKER_HEADS": TRACKER_HEADS,
    # Where logs, checkpoints and results go.
    "OUTPUT_DIR": "./output",
    # Negative draws a seed; any other makes random choices repeatable, though not every GPU operation.
    "SEED": -1,
    # Let cuDNN try its algorithms; it helps when image sizes vary little.
    "CUDNN_BENCHMARK": False,
    # Precision of float32 matrix products: "highest", "high", "medium"; "" leaves torch's setting.
    "FLOAT32_PRECISION": "",
    # Iterations between drawings of training predictions; 0 turns them off.
    "VIS_PERIOD": 0,
    # Free for quick experiments through `global_cfg`, not for code that stays.
    "GLOBAL": {"HACK": 1.0},
}
