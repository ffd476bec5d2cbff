package audit

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
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
	// pemEnd is a private key whose beginning was cut off.
	pemEnd = regexp.MustCompile(`[A-Za-z0-9+/=\s]*-----END [A-Z ]*PRIVATE KEY-----`)
)

// MaskText replaces bearer tokens and private keys within a text.
func MaskText(s string) string {
	if strings.Contains(s, "eyJ") {
		s = jwt.ReplaceAllString(s, Masked)
	}
	if strings.Contains(s, "PRIVATE KEY-----") {
		s = pemEnd.ReplaceAllString(pem.ReplaceAllString(s, Masked), Masked)
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
		out := MaskObject(v, v["kind"] == "Secret")
		if items, ok := v["items"].([]any); ok && v["kind"] == "SecretList" {
			masked := make([]any, len(items)) // the items of a typed list need not say what they are
			for i, item := range items {
				masked[i] = maskAs(item, true)
			}
			out["items"] = masked
		}
		return out
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
		case secret && !plain[key]:
			out[key] = maskValues(value)
		default:
			out[key] = Mask(value)
		}
	}
	return out
}

// plain are the fields of a Secret that hold no value. Every other is masked,
// also one that the API does not know: it may be data under a misspelt name.
var plain = map[string]bool{"apiVersion": true, "kind": true, "metadata": true, "type": true, "immutable": true}

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
		if a.Options.PatchType == action.JSONPatch {
			a.Body = maskOperations(a.Body, isSecret(a))
		} else {
			a.Body = maskAs(a.Body, isSecret(a))
		}
		out.Actions[i] = a
	}
	return out
}

// maskOperations masks the operations of a JSON Patch, whose values do not say
// what they are values of: their paths do.
func maskOperations(body any, secret bool) any {
	list, ok := body.([]any)
	if !ok {
		return maskAs(body, secret)
	}
	out := make([]any, len(list))
	for i, item := range list {
		op, ok := item.(map[string]any)
		if !ok {
			out[i] = maskAt("", item, secret)
			continue
		}
		path, _ := op["path"].(string)
		masked := make(map[string]any, len(op))
		for key, value := range op {
			if key == "op" || key == "path" || key == "from" {
				masked[key] = Mask(value)
			} else {
				masked[key] = maskAt(path, value, secret)
			}
		}
		out[i] = masked
	}
	return out
}

// maskAt masks a value that stands at a JSON Pointer, of a Secret or of another object.
func maskAt(path string, v any, secret bool) any {
	field, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	_, isObject := v.(map[string]any)
	switch {
	case isLastApplied(path), secret && path != "" && !plain[field], secret && path == "" && !isObject:
		return maskPresent(v)
	}
	return maskAs(v, secret && path == "")
}

func isLastApplied(path string) bool {
	return strings.HasSuffix(path, "/"+action.EscapePointer(lastApplied))
}

// MaskDiff returns the changes that an Action would make, without secret values.
func MaskDiff(a action.Action, p action.Preview) []action.Change {
	secret := isSecret(a)
	values := valuesOfSecrets(valuesOfSecrets(nil, "", p.Live, secret), "", p.Result, secret)
	out := make([]action.Change, len(p.Diff))
	for i, c := range p.Diff {
		within := func(at string) bool { return c.Path == at || strings.HasPrefix(c.Path, at+"/") }
		if slices.ContainsFunc(values, within) || isLastApplied(c.Path) {
			c.Old, c.New = maskPresent(c.Old), maskPresent(c.New)
		} else {
			whole := secret && c.Path == "" // else it is what a Secret shows, such as its labels
			c.Old, c.New = maskAs(c.Old, whole), maskAs(c.New, whole)
		}
		out[i] = c
	}
	return out
}

// valuesOfSecrets finds where in an object Secrets hold their values, as JSON
// Pointers: a template or a custom resource can have Secrets within it.
func valuesOfSecrets(found []string, path string, v any, secret bool) []string {
	switch v := v.(type) {
	case map[string]any:
		secret = secret || v["kind"] == "Secret"
		for key, value := range v {
			if secret && !plain[key] {
				found = append(found, path+"/"+action.EscapePointer(key))
			}
			found = valuesOfSecrets(found, path+"/"+action.EscapePointer(key), value, false)
		}
	case []any:
		for i, item := range v {
			found = valuesOfSecrets(found, path+"/"+strconv.Itoa(i), item, false)
		}
	}
	return found
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
