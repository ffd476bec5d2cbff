package audit

import "strings"

// HidesCode reports whether what MaskObject and MaskText would hide of a command
// line in v could be code: it holds what a shell reads as more than a word. An
// approver would not see all that would run. In a decoded JSON value the command
// lines are the lists under the keys command and args, as containers, probes and
// lifecycle hooks have them; v itself is one if it is a list or a text.
func HidesCode(v any) bool {
	switch v := v.(type) {
	case string:
		return argumentHides("", v)
	case []any:
		return commandHides(v) || holdsHidden(v, false)
	}
	return holdsHidden(v, false)
}

// holdsHidden looks for command lines in a value. whole says that all of it is
// masked, as a value of a Secret: also of what only calls itself one.
func holdsHidden(v any, whole bool) bool {
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			if holdsHidden(item, whole) {
				return true
			}
		}
	case map[string]any:
		secret := kindOf(v) == secretKind
		for key, value := range v {
			whole := whole || secret && !plain[key]
			list, isList := value.([]any)
			if isList && isCommand(key) && (whole && len(list) > 0 || commandHides(list)) || holdsHidden(value, whole) {
				return true
			}
		}
	}
	return false
}

func commandHides(list []any) bool {
	flags := flagsBefore(list)
	for i, item := range list {
		if text, ok := item.(string); ok && argumentHides(flags[i], text) {
			return true
		}
	}
	return false
}

func argumentHides(flag, text string) (hides bool) {
	maskAsNamed(flag, text, func(removed string) { hides = hides || isCode(removed, 0) })
	return hides
}

// isCode reports whether a text could be more than one word to a shell, also if
// it is piped there through a decoder of base64.
func isCode(text string, depth int) bool {
	if strings.ContainsAny(text, "`;|&><\n") || strings.Contains(text, "$(") {
		return true
	}
	decoded, ok := decodeText(text)
	return ok && depth < deepest && isCode(decoded, depth+1)
}

// MaskedCode reports whether a text that shown has masked could be code, wherever
// in v it stands: a ConfigMap or an environment can hold a script under a name that
// is a secret's. shown is what masking made of v.
func MaskedCode(v, shown any) bool {
	switch v := v.(type) {
	case string:
		text, _ := shown.(string)
		return text == Masked && v != Masked && isCode(v, 0) || text != v && argumentHides("", v)
	case []any:
		list, _ := shown.([]any)
		for i, item := range v {
			if i < len(list) && MaskedCode(item, list[i]) {
				return true
			}
		}
	case map[string]any:
		object, _ := shown.(map[string]any)
		for key, value := range v {
			if kept, ok := object[key]; ok && MaskedCode(value, kept) {
				return true
			}
		}
	}
	return false
}
