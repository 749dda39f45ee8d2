"""What Inference's own client does against a server: run by a Python that has inference-sdk. Prints JSON."""

import json
import sys
import warnings

warnings.simplefilter("ignore")
from inference_sdk import InferenceConfiguration, InferenceHTTPClient  # noqa: E402

address, image = sys.argv[1:3]
client = InferenceHTTPClient(api_url=address, api_key=None)
told = {"info": client.get_server_info().name}
told["before"] = [model.model_id for model in client.list_loaded_models().models]
told["added"] = [model.model_id for model in client.load_model("sam-miniature").models]
with client.use_configuration(InferenceConfiguration(confidence_threshold=0.3, class_filter=["face", "car"])):
    told["detection"] = client.infer(image, model_id="grounding-dino-miniature")
    told["two"] = client.infer([image, image], model_id="grounding-dino-miniature")
    told["classification"] = client.infer(image, model_id="clip-miniature")
told["compare"] = client.clip_compare(image, ["a face", "a car"])
told["image"] = client.get_clip_image_embeddings(image)
told["texts"] = client.get_clip_text_embeddings(["a face", "a car"])
told["ocr"] = client.ocr_image(image, model="doctr", generate_bounding_boxes=True)
told["sam2"] = client.sam2_segment_image(image, prompts=[{"box": {"x": 60, "y": 60, "width": 50, "height": 40}}])
told["lmm"] = client.infer_lmm(image, model_id="vlm-miniature", prompt="Is there a face?")
try:
    client.infer(image, model_id="no-such/1")
except Exception as error:
    told["unknown"] = f"{type(error).__name__}: {error}"
told["after"] = [model.model_id for model in client.unload_model("sam-miniature").models]
print(json.dumps(told))
