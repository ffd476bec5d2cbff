package audit

import (
	"encoding/base64"
	"maps"
	"reflect"
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

// Mask returns a decoded JSON value without secret values. Names and keys of
// Secrets stay, their values do not, wherever in the value a Secret stands:
// alone, in a List, in an annotation that repeats the object. Elsewhere what a
// text says decides, see MaskText, and where people choose the names, such as
// of environment variables, keys of ConfigMaps and annotations, these together
// with the value. The input is not changed.
func Mask(v any) any { return mask(v, false) }

// mask is Mask for a value of which it is known whether it stands in a spec.
func mask(v any, spec bool) any {
	switch v := v.(type) {
	case string:
		return MaskText(v)
	case []any:
		return maskList("", v, spec)
	case map[string]any:
		return maskObject(v, kindOf(v), spec)
	}
	return v
}

// MaskObject is Mask for an object of which it is known whether it is a Secret
// even where its kind is not written in it.
func MaskObject(object map[string]any, secret bool) map[string]any {
	if object == nil {
		return nil
	}
	if secret {
		return maskObject(object, secretKind, false)
	}
	return maskObject(object, kindOf(object), false)
}

// The kinds whose values are masked in their own way.
const (
	secretKind    = "Secret"
	configMapKind = "ConfigMap"
)

func kindOf(object map[string]any) string {
	kind, _ := object["kind"].(string)
	return kind
}

func maskObject(object map[string]any, kind string, spec bool) map[string]any {
	out := make(map[string]any, len(object))
	name, _ := object["name"].(string)
	for key, value := range object {
		switch {
		case key == lastApplied:
			out[key] = Masked
		case kind == secretKind && !plain[key]:
			out[key] = maskValues(value)
		case kind == configMapKind && key == "data", key == "annotations":
			out[key] = maskNamed(value)
		case kind == configMapKind && key == "binaryData":
			out[key] = maskBinary(value)
		case key == "items":
			out[key] = maskItems(value, strings.TrimSuffix(kind, "List"))
		case key == "value":
			out[key] = maskUnder(name, value, spec) // of an environment variable, a header, a parameter
		default:
			out[key] = maskField(key, value, spec || key == "spec")
		}
	}
	return out
}

// maskItems masks the items of a typed list, which need not say what they are.
func maskItems(v any, kind string) any {
	items, ok := v.([]any)
	if !ok || kind != secretKind && kind != configMapKind {
		return Mask(v)
	}
	out := make([]any, len(items))
	for i, item := range items {
		out[i] = maskAs(item, kind)
	}
	return out
}

// fields are names of credentials in a spec, of custom resources above all.
// No field of Kubernetes' own is called so and holds text.
var fields = map[string]bool{"password": true, "passwd": true, "clientSecret": true, "apiKey": true, "secretKey": true, "privateKey": true, "accessToken": true}

// maskField masks the value of a field of a schema.
func maskField(key string, v any, spec bool) any {
	switch v := v.(type) {
	case []any:
		return maskList(key, v, spec)
	case string:
		// An operator's secretKey can also be which key of a Secret to take.
		if spec && fields[key] && namedSecret(key, v) && (key != "secretKey" && key != "privateKey" || random(v)) {
			return Masked
		}
	}
	return mask(v, spec)
}

// maskList masks a list. In a command line a value follows the flag that says
// what it is.
func maskList(key string, list []any, spec bool) []any {
	out := make([]any, len(list))
	var flags []string
	if isCommand(key) {
		flags = flagsBefore(list)
	}
	for i, item := range list {
		flag := ""
		if flags != nil {
			flag = flags[i]
		}
		out[i] = maskUnder(flag, item, spec)
	}
	return out
}

// isCommand reports whether lists under a key are command lines.
func isCommand(key string) bool { return key == "command" || key == "args" }

// flagsBefore lists for each argument of a command line the flag that it is the
// value of, without dashes, empty for none.
func flagsBefore(list []any) []string {
	flags := make([]string, len(list))
	flag := ""
	for i, item := range list {
		text, _ := item.(string)
		if !strings.HasPrefix(text, "--") { // else another: the one before has no value
			flags[i] = flag
		}
		flag = ""
		if strings.HasPrefix(text, "-") && !strings.Contains(text, "=") {
			flag = strings.TrimLeft(text, "-")
		}
	}
	return flags
}

// maskUnder masks a value that people gave a name.
func maskUnder(name string, v any, spec bool) any {
	text, ok := v.(string)
	if !ok || name == "" {
		return mask(v, spec)
	}
	return MaskNamed(name, text)
}

// MaskNamed masks a text that stands under a name that people gave it, such as
// that of a table's column: all of it if the name says that it is a credential,
// else as MaskText does, to which the name is a part of the text.
func MaskNamed(name, text string) string { return maskAsNamed(name, text, nil) }

func maskAsNamed(name, text string, removed func(string)) string {
	if name == "" {
		return maskText(text, removed)
	}
	if namedSecret(name, text) {
		if removed != nil {
			removed(text)
		}
		return Masked
	}
	// Rules of vendors want the name by the value: DATADOG_API_KEY=...
	if line := name + "=" + text; len(text) < 256 && !strings.ContainsAny(text, "\n ") {
		if masked, ok := strings.CutPrefix(maskText(line, removed), name+"="); ok {
			return masked
		}
	}
	return maskText(text, removed)
}

// maskNamed masks a map whose keys are such names.
func maskNamed(v any) any {
	values, ok := v.(map[string]any)
	if !ok || kindOf(values) == secretKind {
		return Mask(v)
	}
	out := make(map[string]any, len(values))
	for key, value := range values {
		if key == lastApplied {
			out[key] = Masked
		} else {
			out[key] = maskUnder(key, value, false)
		}
	}
	return out
}

// maskBinary masks the values of a ConfigMap's binaryData that hold a secret,
// whole: what is left of them would be no base64.
func maskBinary(v any) any {
	values, ok := v.(map[string]any)
	if !ok {
		return Mask(v)
	}
	out := make(map[string]any, len(values))
	for key, value := range values {
		out[key] = maskBinaryValue(key, value)
	}
	return out
}

func maskBinaryValue(key string, v any) any {
	text, ok := v.(string)
	if !ok {
		return Mask(v)
	}
	decoded, err := base64.StdEncoding.DecodeString(text)
	if err == nil && (namedSecret(key, string(decoded)) || MaskText(string(decoded)) != string(decoded)) {
		return Masked
	}
	return MaskText(text)
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

// MaskPlan returns the plan with every Action's body and command masked.
func MaskPlan(p action.Plan) action.Plan {
	out := action.Plan{Tool: p.Tool, Actions: make([]action.Action, len(p.Actions))}
	for i, a := range p.Actions {
		if a.Options.PatchType == action.JSONPatch {
			a.Body = maskOperations(a.Body, kindIn(a))
		} else {
			a.Body = maskAs(a.Body, kindIn(a))
		}
		a.Options.Command = maskCommand(a.Options.Command)
		out.Actions[i] = a
	}
	return out
}

// CommandMasked reports whether MaskPlan would mask any argument of a command,
// so that nobody who is asked about the plan could see all that would run.
func CommandMasked(argv []string) bool { return !slices.Equal(maskCommand(argv), argv) }

func maskCommand(command []string) []string {
	var list []any
	for _, argument := range command {
		list = append(list, argument)
	}
	var out []string
	for _, argument := range maskList("command", list, false) {
		text, _ := argument.(string)
		out = append(out, text)
	}
	return out
}

// maskOperations masks the operations of a JSON Patch, whose values do not say
// what they are values of: their paths do.
func maskOperations(body any, kind string) any {
	list, ok := body.([]any)
	if !ok {
		return maskAs(body, kind)
	}
	names := map[string]string{} // what other operations say that an entry is called
	for _, item := range list {
		op, _ := item.(map[string]any)
		path, _ := op["path"].(string)
		if entry, ok := strings.CutSuffix(path, "/name"); ok {
			names[entry], _ = op["value"].(string)
		}
	}
	out := make([]any, len(list))
	for i, item := range list {
		op, ok := item.(map[string]any)
		if !ok {
			out[i] = maskAt("", item, kind)
			continue
		}
		path, _ := op["path"].(string)
		entry, isValue := strings.CutSuffix(path, "/value")
		masked := make(map[string]any, len(op))
		for key, value := range op {
			switch text, isText := value.(string); {
			case key == "op" || key == "path" || key == "from":
				masked[key] = Mask(value)
			case isText && isValue && variable.MatchString(entry) && names[entry] == "" && !plainValue(text):
				masked[key] = Masked // of an environment variable that nothing here names
			case isText && isValue && names[entry] != "":
				masked[key] = maskUnder(names[entry], text, true)
			default:
				masked[key] = maskAt(path, value, kind)
			}
		}
		out[i] = masked
	}
	return out
}

var variable = regexp.MustCompile(`/env/(?:\d+|-)$`)

// maskAt masks a value that stands at a JSON Pointer, of an object of a kind.
func maskAt(path string, v any, kind string) any {
	field, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	_, isObject := v.(map[string]any)
	secret := kind == secretKind
	switch {
	case isLastApplied(path), secret && path != "" && !plain[field], secret && path == "" && !isObject:
		return maskPresent(v)
	case path == "":
		return maskAs(v, kind)
	}
	parent, key := path[:strings.LastIndexByte(path, '/')], unescapePointer(path[strings.LastIndexByte(path, '/')+1:])
	switch {
	case kind == configMapKind && parent == "/data", strings.HasSuffix(parent, "/annotations"):
		return maskUnder(key, v, false)
	case kind == configMapKind && parent == "/binaryData":
		return maskBinaryValue(key, v)
	}
	// As a field of an object: the whole of data is masked as in one.
	within := ""
	if parent == "" {
		within = kind
	}
	return maskObject(map[string]any{key: v}, within, strings.HasPrefix(path, "/spec/"))[key]
}

func unescapePointer(key string) string {
	return strings.ReplaceAll(strings.ReplaceAll(key, "~1", "/"), "~0", "~")
}

func isLastApplied(path string) bool {
	return strings.HasSuffix(path, "/"+action.EscapePointer(lastApplied))
}

// MaskDiff returns the changes that an Action would make, without secret values.
// A value is masked on both sides if it is on one.
func MaskDiff(a action.Action, p action.Preview) []action.Change {
	kind := kindIn(a)
	values := valuesOfSecrets(valuesOfSecrets(nil, "", p.Live, kind == secretKind), "", p.Result, kind == secretKind)
	live, result := maskWhole(p.Live, kind), maskWhole(p.Result, kind)
	out := make([]action.Change, len(p.Diff))
	for i, c := range p.Diff {
		within := func(at string) bool { return c.Path == at || strings.HasPrefix(c.Path, at+"/") }
		if slices.ContainsFunc(values, within) || isLastApplied(c.Path) {
			c.Old, c.New = maskPresent(c.Old), maskPresent(c.New)
		} else {
			c.Old, c.New = maskChanged(c.Path, c.Old, p.Live, live, kind), maskChanged(c.Path, c.New, p.Result, result, kind)
			if c.Old == Masked || c.New == Masked {
				c.Old, c.New = maskPresent(c.Old), maskPresent(c.New)
			}
		}
		out[i] = c
	}
	return out
}

func maskWhole(object map[string]any, kind string) any {
	if object == nil {
		return nil
	}
	return maskAs(object, kind)
}

// maskChanged masks one side of a change as it is masked in the whole object:
// there the name stands that says what a value is.
func maskChanged(path string, v any, object map[string]any, masked any, kind string) any {
	if path == "" {
		return maskAs(v, kind)
	}
	if was, ok := lookUp(object, path); ok && reflect.DeepEqual(was, v) {
		if found, ok := lookUp(masked, path); ok {
			return found
		}
	}
	return maskAt(path, v, kind)
}

// lookUp finds what stands at a JSON Pointer.
func lookUp(v any, path string) (any, bool) {
	for _, key := range strings.Split(path, "/")[1:] {
		switch in := v.(type) {
		case map[string]any:
			value, ok := in[unescapePointer(key)]
			if !ok {
				return nil, false
			}
			v = value
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i >= len(in) {
				return nil, false
			}
			v = in[i]
		default:
			return nil, false
		}
	}
	return v, true
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

// maskAs masks a value that is an object of a kind, even where it does not say so.
func maskAs(v any, kind string) any {
	object, ok := v.(map[string]any)
	if !ok {
		return Mask(v)
	}
	if own := kindOf(object); own == secretKind || kind == "" {
		kind = own
	}
	return maskObject(object, kind, false)
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

// kindIn is the kind of the object that an Action is about, for the kinds whose
// values are masked in their own way. A patch does not repeat it.
func kindIn(a action.Action) string {
	switch a.Resource.GroupResource() {
	case "secrets":
		return secretKind
	case "configmaps":
		return configMapKind
	}
	return ""
}
