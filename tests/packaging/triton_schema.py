"""The part of Triton's model_config.proto that our files use, by its published names and types.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protobuf_api/model_config.proto.html
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message

_Field = descriptor_pb2.FieldDescriptorProto
_KINDS = {"string": _Field.TYPE_STRING, "int32": _Field.TYPE_INT32, "int64": _Field.TYPE_INT64,
          "uint64": _Field.TYPE_UINT64, "bool": _Field.TYPE_BOOL}  # fmt: skip

_ENUMS = {
    "DataType": (
        "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8",
        "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
    ),
    "Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
}  # fmt: skip
_MESSAGES = {
    "ModelInput": {"name": "string", "data_type": "DataType", "dims": "int64*"},
    "ModelOutput": {"name": "string", "data_type": "DataType", "dims": "int64*", "label_filename": "string"},
    "ModelInstanceGroup": {"name": "string", "kind": "Kind", "count": "int32", "gpus": "int32*"},
    "ModelDynamicBatching": {
        "preferred_batch_size": "int32*", "max_queue_delay_microseconds": "uint64", "preserve_ordering": "bool",
    },
    "ModelConfig": {
        "name": "string", "platform": "string", "backend": "string", "max_batch_size": "int32",
        "input": "ModelInput*", "output": "ModelOutput*", "default_model_filename": "string",
        "instance_group": "ModelInstanceGroup*", "dynamic_batching": "ModelDynamicBatching",
    },
}  # fmt: skip


def parsed(text: str) -> Message:
    """A `config.pbtxt` as a message; a field that the schema does not have, or of another type, is an error."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            plain = kind.removesuffix("*")
            label = _Field.LABEL_REPEATED if kind.endswith("*") else _Field.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label)
            if plain in _KINDS:
                added.type = _KINDS[plain]
            else:
                added.type = _Field.TYPE_ENUM if plain in _ENUMS else _Field.TYPE_MESSAGE
                added.type_name = f".inference.{plain}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))()
    return text_format.Parse(text, config)
