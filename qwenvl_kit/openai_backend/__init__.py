"""Generate with a server of the OpenAI-compatible protocol, such as vLLM, SGLang or LMDeploy."""
