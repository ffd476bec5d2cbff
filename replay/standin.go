package replay

import (
	"encoding/base64"
	"strconv"
	"strings"

	"countersign/action"
	"countersign/audit"
)

// standIn takes the place of what is masked. It is the same everywhere, so that a
// second replay writes what the first did.
const standIn = "countersign-stand-in"

// The kinds of which parts are base64.
const (
	secretKind    = "Secret"
	configMapKind = "ConfigMap"
)

// filler puts stand-ins where something is masked, and notes where.
type filler struct{ at []string }

// fill returns the body of a request with stand-ins, and where they stand, as JSON
// Pointers.
func fill(a action.Action) (any, []string) {
	var f filler
	kind := map[string]string{"secrets": secretKind, "configmaps": configMapKind}[a.Resource.GroupResource()]
	list, isList := a.Body.([]any)
	if a.Options.PatchType != action.JSONPatch || !isList {
		return f.value(a.Body, "", kind), f.at
	}
	out := make([]any, len(list))
	for i, item := range list {
		operation, ok := item.(map[string]any)
		if !ok {
			out[i] = item
			continue
		}
		filled := make(map[string]any, len(operation))
		for key, value := range operation {
			filled[key] = value
		}
		path, _ := operation["path"].(string)
		at := "/" + strconv.Itoa(i) + "/value"
		switch value := operation["value"].(type) {
		case nil:
		case string:
			filled["value"] = f.text(value, at, path[strings.LastIndexByte(path, '/')+1:], encoded(kind, path))
		default:
			if encoded(kind, path) {
				filled["value"] = f.encoded(value, at)
			} else if path == "" {
				filled["value"] = f.value(value, at, kind)
			} else {
				filled["value"] = f.value(value, at, "")
			}
		}
		out[i] = filled
	}
	return out, f.at
}

// encoded reports whether what stands at a JSON Pointer of an object is base64.
func encoded(kind, path string) bool {
	field, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return kind == secretKind && field == "data" || kind == configMapKind && field == "binaryData"
}

// value fills a value, which is an object of a kind where that is known.
func (f *filler) value(v any, path, kind string) any {
	switch v := v.(type) {
	case map[string]any:
		if own, ok := v["kind"].(string); ok {
			kind = own
		}
		out := make(map[string]any, len(v))
		for key, value := range v {
			at := path + "/" + action.EscapePointer(key)
			switch text, isText := value.(string); {
			case encoded(kind, key):
				out[key] = f.encoded(value, at)
			case isText:
				out[key] = f.text(text, at, key, false)
			default:
				out[key] = f.value(value, at, "")
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = f.value(item, path+"/"+strconv.Itoa(i), "")
		}
		return out
	case string:
		return f.text(v, path, "", false)
	}
	return v
}

// encoded fills a map whose values are base64.
func (f *filler) encoded(v any, path string) any {
	values, ok := v.(map[string]any)
	if !ok {
		return f.value(v, path, "")
	}
	out := make(map[string]any, len(values))
	for key, value := range values {
		at := path + "/" + action.EscapePointer(key)
		if text, ok := value.(string); ok {
			out[key] = f.text(text, at, key, true)
		} else {
			out[key] = f.value(value, at, "")
		}
	}
	return out
}

// text fills a text that stands under a key. Of base64 nothing is left but the whole.
func (f *filler) text(text, path, key string, encoded bool) string {
	if !strings.Contains(text, audit.Masked) {
		return text
	}
	f.at = append(f.at, path)
	with := standIn
	if key == ".dockerconfigjson" || key == ".dockercfg" { // the API server wants JSON
		with, text = "{}", audit.Masked
	}
	if encoded {
		return base64.StdEncoding.EncodeToString([]byte(with))
	}
	return strings.ReplaceAll(text, audit.Masked, with)
}
