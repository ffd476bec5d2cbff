package tools

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
	"k8s.io/client-go/util/jsonpath" // reads values, and talks to nobody

	"countersign/action"
)

// How many fields may be asked for, and how long the path of one may be.
const (
	maxFields = 10
	maxField  = 200
)

// fieldsArgument is the schema of a fields argument.
func fieldsArgument(s *jsonschema.Schema) {
	s.Properties["fields"] = &jsonschema.Schema{
		Type: "array", MaxItems: jsonschema.Ptr(maxFields),
		Items:       &jsonschema.Schema{Type: "string"},
		Description: "show only these: spec.replicas or {.spec.containers[*].image}",
	}
}

// withFields makes the request one for whole objects, of which these are shown.
// They are paths as in kubectl -o jsonpath; without braces, as in kubectl -o
// custom-columns.
func withFields(o action.Options, fields []string) (action.Options, error) {
	for _, given := range fields {
		path := strings.TrimSpace(header.ReplaceAllString(given, ""))
		if inner, found := strings.CutPrefix(path, "{"); found {
			path = strings.TrimSuffix(inner, "}")
		}
		path = strings.TrimPrefix(strings.TrimPrefix(path, "$"), ".")
		path = "." + strings.TrimPrefix(path, "items[*].") // each object is looked at by itself
		if _, err := parsePath(path); err != nil {
			return o, BadArgument("fields: %.100q is not a path: %v; write it as spec.replicas, {.spec.containers[*].image} or {.status.conditions[?(@.type==\"Ready\")].status}", given, err)
		}
		o.Table, o.Fields = false, append(o.Fields, path)
	}
	return o, nil
}

var (
	// header is what stands before a path in kubectl -o custom-columns.
	header = regexp.MustCompile(`^[^.:$@'"(){}\[\]]*:`)
	// quotedKey is a key that is no name, as of a label.
	quotedKey = regexp.MustCompile(`\['([^']*)'\]|\["([^"]*)"\]`)
)

// escapeKeys writes keys as the JSONPath package takes them. To it a dot
// separates fields even within quotes, and double quotes are none.
func escapeKeys(path string) string {
	return quotedKey.ReplaceAllStringFunc(path, func(quoted string) string {
		key := strings.ReplaceAll(quoted[2:len(quoted)-2], `\.`, ".")
		return "['" + strings.ReplaceAll(key, ".", `\.`) + "']"
	})
}

// parsePath refuses, besides what is no JSONPath, what can make more of an
// object than there is: each descent or union within another multiplies.
func parsePath(path string) (*jsonpath.JSONPath, error) {
	switch {
	case len(path) > maxField:
		return nil, fmt.Errorf("it is longer than %d bytes", maxField)
	case path == ".":
		return nil, errors.New("it is empty")
	case strings.ContainsAny(path, "{}"):
		return nil, errors.New("braces stand only around it")
	case strings.Contains(path, ".."):
		return nil, errors.New(`".." is not taken: name the fields on the way`)
	case strings.Contains(path, ","):
		return nil, errors.New("a comma is not taken: give each as a field of its own")
	}
	parsed := jsonpath.New("field").AllowMissingKeys(true)
	return parsed, parsed.Parse("{" + escapeKeys(path) + "}")
}

// field is one path, parsed for the objects of one answer.
type field struct {
	path   string // without the dot in front
	parsed *jsonpath.JSONPath
}

func parseFields(paths []string) ([]field, error) {
	fields := make([]field, len(paths))
	for i, path := range paths {
		parsed, err := parsePath(path)
		if err != nil {
			return nil, err
		}
		fields[i] = field{path: path[1:], parsed: parsed}
	}
	return fields, nil
}

// of is what stands there in an object: nil where nothing does, a list where
// the path leads to several values.
func (f field) of(object map[string]any) (value any, err error) {
	defer func() {
		if recover() != nil { // a filter can compare what does not compare
			value, err = nil, BadArgument("fields: %s does not fit the object", f.path)
		}
	}()
	found, err := f.parsed.FindResults(object)
	if err != nil {
		if strings.Contains(err.Error(), "out of bounds") {
			return nil, nil // a shorter list than others have
		}
		// Its words repeat what stands in the object, which is data.
		return nil, BadArgument("fields: %s does not fit the object", f.path)
	}
	var values []any
	for _, results := range found {
		for _, result := range results {
			if result.IsValid() && result.CanInterface() {
				values = append(values, result.Interface())
			}
		}
	}
	switch len(values) {
	case 0:
		return nil, nil
	case 1:
		return values[0], nil
	}
	return values, nil
}

// fieldText is a value on one line: text as it is, everything else as JSON.
func fieldText(value any) string {
	switch v := value.(type) {
	case nil:
		return "<none>"
	case string:
		return cellText(v)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if enc.Encode(value) != nil {
		return "?"
	}
	return cellText(b.String())
}
