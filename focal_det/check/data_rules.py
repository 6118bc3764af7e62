"""Faults of annotation files, of images and of annotations: CHK1xx, CHK2xx and CHK3xx."""

from .rules import add_rule

# Annotation files: whether they can be read.
MISSING_ANNOTATION_FILE = add_rule(
    "CHK100", "error", "missing annotation file", "Put the file there, or correct the path."
)
COMPRESSED_FILE = add_rule("CHK101", "error", "compressed annotation file", "Unpack it.")
# pycocotools opens files in the encoding of the system.
NOT_UTF8 = add_rule("CHK102", "error", "annotation file not encoded in UTF-8", "Save it as UTF-8.")
# json.load refuses it, and editors on Windows write it.
BYTE_ORDER_MARK = add_rule(
    "CHK103",
    "error",
    "byte order mark in an annotation file",
    "Save it as UTF-8 without a byte order mark.",
)
OTHER_FILE_FORMAT = add_rule(
    "CHK104", "error", "annotation file in another format", "Convert it to COCO JSON."
)
NOT_JSON = add_rule(
    "CHK105",
    "error",
    "annotation file that is not JSON",
    "Use a JSON file of COCO annotations.",
)
DAMAGED_JSON = add_rule(
    "CHK106",
    "error",
    "damaged annotation file",
    "It is not complete JSON: copy the file again, or correct the program that writes it.",
)
# Python's parser ends in a RecursionError.
DEEPLY_NESTED = add_rule(
    "CHK107",
    "error",
    "annotation file that is nested too deeply",
    "COCO annotations need fewer than ten levels: correct the program that writes the file.",
)
# A test set may come without annotations, which the benchmark keeps to itself.
MISSING_LIST = add_rule(
    "CHK108",
    "error",
    "annotation file without a required list",
    "COCO annotations need lists under {needed}.",
)
NOT_A_MAPPING = add_rule("CHK109", "error", "entry that is not a mapping", "Remove it.")
UNREADABLE_DATASET = add_rule(
    "CHK110",
    "error",
    "data set that cannot be read",
    "The loader raised this error: correct what it names.",
)
INVALID_VOC_IMAGE = add_rule(
    "CHK111",
    "error",
    "VOC image whose file or XML is missing or invalid",
    "Add or correct the file, or remove the image from ImageSets/Main/<split>.txt.",
)

# Annotation files: their categories.
INVALID_CATEGORY = add_rule(
    "CHK120",
    "error",
    "category without an id or name",
    "Each category needs a unique whole number as its id, and a name.",
)
DUPLICATE_CATEGORY_NAME = add_rule(
    "CHK121",
    "warning",
    "duplicate category name",
    "They train as different classes: merge them, or give them different names.",
)
# COCO itself has gaps; Detectron2 maps the ids, which predictions must undo.
CATEGORY_ID_GAPS = add_rule(
    "CHK122", "note", "category ids other than 1 to K", "Class ids are {mapping}."
)

# Annotation files: whether they hold objects.
NOTHING_TO_TRAIN_ON = add_rule(
    "CHK130",
    "error",
    "training set without a usable annotation",
    "There is nothing to train on: correct the annotations, or name another data set.",
)
NOTHING_TO_EVALUATE_ON = add_rule(
    "CHK131",
    "warning",
    "test set without a usable annotation",
    "Detections are written, but the metrics are missing or NaN.",
)
# Detectron2's default.
EMPTY_IMAGES_DROPPED = add_rule(
    "CHK132",
    "note",
    "training set with empty images, which are left out",
    "Set DATALOADER.FILTER_EMPTY_ANNOTATIONS to False to train on them as background.",
)
EMPTY_IMAGES_KEPT = add_rule(
    "CHK133",
    "note",
    "training set with empty images, kept as background",
    "Make sure that they show no objects (DATALOADER.FILTER_EMPTY_ANNOTATIONS is False).",
)
EMPTY_IMAGES_TESTED = add_rule(
    "CHK134",
    "note",
    "test set with empty images",
    "Every detection there counts as a false positive: make sure that they show no objects.",
)

# Images: their entries in a COCO JSON.
# Detectron2's loader sorts the ids, which fails for int and str together.
MIXED_IMAGE_IDS = add_rule(
    "CHK200", "error", "image ids of different types", "Renumber the images."
)
INCOMPLETE_IMAGE = add_rule(
    "CHK201",
    "error",
    "image without a required field",
    "Add it: Detectron2 needs id, file_name, width and height of each image.",
)
INVALID_IMAGE_ID = add_rule(
    "CHK202", "error", "invalid image id", "An id must be a whole number or text."
)
INVALID_IMAGE_SIZE = add_rule(
    "CHK203",
    "error",
    "invalid image file name or size",
    "file_name must be text, width and height numbers of pixels.",
)
# A NUL, or half of a surrogate pair.
IMPOSSIBLE_FILE_NAME = add_rule(
    "CHK204",
    "error",
    "file name that no file can have",
    "Correct the name, or remove the image.",
)
# pycocotools keeps the last image of an id, without a message.
DUPLICATE_IMAGE_ID = add_rule(
    "CHK205",
    "error",
    "duplicate image id",
    "Boxes would land on the wrong image: renumber the images.",
)
DUPLICATE_IMAGE_FILE = add_rule(
    "CHK206",
    "warning",
    "image file listed more than once",
    "Merge its annotations under one id; the objects of one entry are background in the other.",
)
# It works here, and fails where the data set is copied to.
FILE_OUTSIDE_FOLDER = add_rule(
    "CHK207",
    "warning",
    "file name outside the image folder",
    "Name it relative to that folder, without `..`.",
)

# Images: dataset dicts, of VOC folders and of data sets registered by code.
INCOMPLETE_RECORD = add_rule(
    "CHK210",
    "error",
    "dataset dict with a missing or invalid field",
    "Correct it in the code that loads the data set.",
)
INVALID_RECORD_ID = add_rule(
    "CHK211",
    "error",
    "image id that is neither int nor str",
    "Evaluation looks images up by id: correct the code that loads the data set.",
)
# In a training set it is a way to show an image more often.
REPEATED_IMAGE = add_rule(
    "CHK212",
    "error",
    "repeated image id in a test set",
    "Evaluation would mix up the images: list each image once.",
)

# Images: their files.
_GET_AGAIN = "Training would stop at it: get it again, or remove it from the annotations."
MISSING_IMAGE = add_rule(
    "CHK220", "error", "missing image file", "Put it there, or correct the folder or the name."
)
EMPTY_IMAGE_FILE = add_rule("CHK221", "error", "empty image file", _GET_AGAIN)
UNDECODABLE_IMAGE = add_rule("CHK222", "error", "image that cannot be decoded", _GET_AGAIN)
OTHER_IMAGE_SIZE = add_rule(
    "CHK223",
    "error",
    "image size that differs from the annotations",
    "Training would stop at it: correct width and height in the annotations, and check that the "
    "boxes fit.",
)
# A 16-bit image would become white nearly everywhere.
DEEP_PIXELS = add_rule(
    "CHK224",
    "error",
    "image whose values do not fit into 8 bits",
    "Detectron2 clips pixels to whole numbers from 0 to 255: convert the image.",
)
# Some are normal, such as black frames; many are a fault of a conversion.
FLAT_IMAGE = add_rule(
    "CHK225",
    "note",
    "image of a single colour",
    "It shows nothing: look at the file.",
    otherwise="warning if there are at least two, and they are over a tenth of the decoded images",
)
NOT_ALL_DECODED = add_rule(
    "CHK226",
    "note",
    "partly decoded data set",
    "The other images were only checked for being missing or empty (0 bytes). Run focal-det "
    "check without --images to decode all.",
)
TEST_SET_TRAINED_ON = add_rule(
    "CHK230",
    "note",
    "test set that is trained on",
    "Metrics will look better than on images that the model has not seen.",
)
TEST_IMAGE_TRAINED_ON = add_rule(
    "CHK231",
    "warning",
    "test image that is trained on",
    "Metrics will look better than on images that the model has not seen: keep the sets apart.",
)

# Annotations: ids and fields.
DUPLICATE_ANNOTATION_ID = add_rule(
    "CHK300", "error", "duplicate annotation id", "Detectron2 stops while it loads the file."
)
# In COCOeval, a match is the id of an annotation, and 0 is no match.
ANNOTATION_ID_ZERO = add_rule(
    "CHK301",
    "warning",
    "annotation with id 0",
    "pycocotools treats id 0 as 'no match': a correct detection of the object counts as a false "
    "positive.",
)
# Detectron2's loader needs neither of them, pycocotools' evaluation both.
NO_CROWD_OR_AREA = add_rule(
    "CHK302",
    "error",
    "annotation without iscrowd or area",
    "Evaluation crashes without them, after training has finished.",
    otherwise="warning if the set is not used for evaluation",
)
DUPLICATE_OBJECT = add_rule(
    "CHK303", "warning", "duplicate object", "It is trained on and counted twice."
)
INCOMPLETE_ANNOTATION = add_rule(
    "CHK304",
    "error",
    "annotation without a required field",
    "Detectron2 cannot read it.",
)
INVALID_ANNOTATION_ID = add_rule(
    "CHK305", "error", "invalid annotation id", "The id of an annotation must be a whole number."
)
UNKNOWN_IMAGE = add_rule(
    "CHK306", "error", "annotation of an unknown image", "The file has no such image."
)
UNKNOWN_CATEGORY = add_rule(
    "CHK307",
    "error",
    "annotation of an unknown category",
    "Known categories are {known}.",
)
INVALID_CROWD = add_rule(
    "CHK308",
    "error",
    "invalid iscrowd or ignore",
    "iscrowd must be 0 or 1; ignore must be 0 or left out.",
)
INVALID_AREA = add_rule(
    "CHK309", "error", "invalid area", "area must be a number of square pixels."
)

# Annotations: boxes and outlines.
BOX_NOT_FINITE = add_rule(
    "CHK310",
    "error",
    "box that is not four finite numbers",
    "Depending on the value, training stops, or silently leaves the box out or clips it; "
    "evaluation may still count the box.",
)
BOX_WITHOUT_AREA = add_rule(
    "CHK311",
    "warning",
    "box without area",
    "Training leaves it out, and evaluation may still count it as missed.",
)
BOX_OUTSIDE = add_rule(
    "CHK312",
    "warning",
    "box outside the image",
    "Training leaves it out, and evaluation may still count it as missed.",
)
BOX_CUT = add_rule(
    "CHK313",
    "warning",
    "box that extends beyond the image",
    "Training cuts it at the edge; evaluation does not.",
)
# load_coco_json skips such objects, though RetinaNet needs their boxes only.
INVALID_OUTLINE = add_rule(
    "CHK314",
    "warning",
    "segmentation without a polygon of at least three points",
    "Detectron2 leaves the whole object out.",
)
INVALID_SEGMENTATION = add_rule(
    "CHK315",
    "error",
    "invalid segmentation",
    "segmentation must be a list of polygons, or RLE with size and counts.",
)
INVALID_KEYPOINTS = add_rule(
    "CHK316", "error", "invalid keypoints", "keypoints must be a list of numbers."
)

# Annotations: faults that all of them share.
SHIFTED_CATEGORY_IDS = add_rule(
    "CHK320",
    "error",
    "shifted category ids",
    "Objects are labelled as other classes: correct the ids of the categories or of the "
    "annotations.",
)
BOXES_AS_FRACTIONS = add_rule(
    "CHK321",
    "error",
    "boxes as fractions of the image",
    "COCO boxes are in pixels: multiply by width and height of the image.",
)
# Corners are the form of VOC and of most detectors, centres that of YOLO.
OTHER_BOX_FORMAT = add_rule(
    "CHK322",
    "error",
    "boxes in another format",
    "They look like {form}. COCO boxes are x, y, width, height, with x and y of the upper left "
    "corner: convert them.",
    otherwise="warning if fewer than half of the boxes extend beyond their image",
)
BOXES_OF_OTHER_IMAGES = add_rule(
    "CHK323",
    "error",
    "boxes that do not match the images",
    "They may belong to images of another size, or to other files: find the images that they were "
    "drawn in.",
)

# Annotations in dataset dicts.
INCOMPLETE_OBJECT = add_rule(
    "CHK330",
    "error",
    "object without a required field",
    "Add it in the code that loads the data set.",
)
UNKNOWN_CLASS = add_rule(
    "CHK331",
    "error",
    "object of an unknown class",
    "Class ids are 0 to {last}, one for each of thing_classes.",
)
# BoxMode.convert takes an array for (N, 4) boxes, and a list or tuple for one.
BOX_AS_ARRAY = add_rule(
    "CHK332",
    "error",
    "box given as an array",
    "Detectron2 converts boxes given as lists of four numbers, but not one-dimensional arrays: use "
    ".tolist().",
)
