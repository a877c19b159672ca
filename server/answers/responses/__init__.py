"""OpenAI's Responses API: items in, a chat through ``chat_work``, items and events out, stored."""
