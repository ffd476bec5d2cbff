package audit

import (
	"maps"
	"regexp"
	"strings"

	"countersign/action"
)

// Masked stands where a secret value stood.
const Masked = "***"

// lastApplied repeats a whole object, secret values included, in a string.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

var (
	jwt = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*`)
	pem = regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)`)
)

// MaskText replaces bearer tokens and private keys within a text.
func MaskText(s string) string {
	if strings.Contains(s, "eyJ") {
		s = jwt.ReplaceAllString(s, Masked)
	}
	if strings.Contains(s, "PRIVATE KEY-----") {
		s = pem.ReplaceAllString(s, Masked)
	}
	return s
}

// Mask returns a decoded JSON value without secret values. Names and keys of
// Secrets stay, their values do not, wherever in the value a Secret stands:
// alone, in a List, in an annotation that repeats the object. The input is not
// changed.
func Mask(v any) any {
	switch v := v.(type) {
	case string:
		return MaskText(v)
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = Mask(item)
		}
		return out
	case map[string]any:
		return MaskObject(v, v["kind"] == "Secret")
	}
	return v
}

// MaskObject is Mask for an object of which it is known whether it is a Secret
// even where its kind is not written in it.
func MaskObject(object map[string]any, secret bool) map[string]any {
	if object == nil {
		return nil
	}
	out := make(map[string]any, len(object))
	for key, value := range object {
		switch {
		case key == lastApplied:
			out[key] = Masked
		case secret && (key == "data" || key == "stringData"):
			out[key] = maskValues(value)
		default:
			out[key] = Mask(value)
		}
	}
	return out
}

func maskValues(v any) any {
	values, ok := v.(map[string]any)
	if !ok {
		return Masked
	}
	out := maps.Clone(values)
	for key := range out {
		out[key] = Masked
	}
	return out
}

// MaskPlan returns the plan with every Action's body masked.
func MaskPlan(p action.Plan) action.Plan {
	out := action.Plan{Tool: p.Tool, Actions: make([]action.Action, len(p.Actions))}
	for i, a := range p.Actions {
		if object, ok := a.Body.(map[string]any); ok {
			a.Body = MaskObject(object, isSecret(a))
		} else {
			a.Body = Mask(a.Body)
		}
		out.Actions[i] = a
	}
	return out
}

// MaskDiff returns the changes that an Action would make, without secret values.
func MaskDiff(a action.Action, diff []action.Change) []action.Change {
	secret := isSecret(a)
	out := make([]action.Change, len(diff))
	for i, c := range diff {
		if secret && (strings.HasPrefix(c.Path, "/data") || strings.HasPrefix(c.Path, "/stringData")) {
			c.Old, c.New = maskPresent(c.Old), maskPresent(c.New)
		} else {
			c.Old, c.New = maskAs(c.Old, secret), maskAs(c.New, secret)
		}
		if strings.HasSuffix(c.Path, "/kubectl.kubernetes.io~1last-applied-configuration") {
			c.Old, c.New = maskPresent(c.Old), maskPresent(c.New)
		}
		out[i] = c
	}
	return out
}

func maskAs(v any, secret bool) any {
	if object, ok := v.(map[string]any); ok {
		return MaskObject(object, secret || object["kind"] == "Secret")
	}
	return Mask(v)
}

func maskPresent(v any) any {
	if v == nil {
		return nil
	}
	if _, ok := v.(map[string]any); ok {
		return maskValues(v)
	}
	return Masked
}

func isSecret(a action.Action) bool { return a.Resource.GroupResource() == "secrets" }
