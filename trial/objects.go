package trial

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
	kjson "sigs.k8s.io/json"

	"countersign/strictyaml"
)

// Objects reads the objects of a file, YAML or JSON: one or several documents,
// Lists taken apart. The error is strictyaml.Problems.
func Objects(file string, data []byte) ([]map[string]any, error) {
	var nodes []*yaml.Node
	documents, err := strictyaml.Decode(file, data, func() any {
		nodes = append(nodes, &yaml.Node{})
		return nodes[len(nodes)-1]
	})
	if err != nil {
		return nil, err
	}
	r := newReader()
	var all []map[string]any
	for i, document := range documents {
		r.at = document
		object, err := r.object(nodes[i])
		if err == nil && object == nil {
			err = errors.New("is not an object")
		}
		if err != nil {
			r.report(nil, "document %d %v", i+1, err)
			continue
		}
		items, isList := object["items"].([]any)
		if kind, _ := object["kind"].(string); !isList || !strings.HasSuffix(kind, "List") {
			all = append(all, object)
			continue
		}
		for n, item := range items {
			object, ok := item.(map[string]any)
			if !ok {
				r.report([]any{"items", n}, "item %d is not an object", n+1)
				continue
			}
			all = append(all, object)
		}
	}
	return all, r.problems.OrNil()
}

// object reads a node as the decoded JSON that a cluster would give: nil for
// null. What its aliases stand for has been bounded by strictyaml.
func (r *reader) object(node *yaml.Node) (map[string]any, error) {
	for node.Kind == yaml.DocumentNode && len(node.Content) == 1 || node.Kind == yaml.AliasNode {
		if node.Kind == yaml.AliasNode {
			node = node.Alias
		} else {
			node = node.Content[0]
		}
	}
	if node.IsZero() || node.ShortTag() == "!!null" {
		return nil, nil
	}
	if node.Kind != yaml.MappingNode {
		return nil, errors.New("is not an object")
	}
	r.timesAreText(node)
	var value any
	if err := node.Decode(&value); err != nil {
		return nil, errors.New(reason(err))
	}
	data, err := json.Marshal(value)
	if err != nil {
		return nil, errors.New("holds what JSON does not know: keys are text, and numbers are finite")
	}
	var object map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &object); err != nil {
		return nil, err
	}
	return object, nil
}

// timesAreText makes plain YAML's timestamps the text that they are to Kubernetes.
func (r *reader) timesAreText(node *yaml.Node) {
	if node == nil || r.walked[node] {
		return
	}
	r.walked[node] = true
	if node.Kind == yaml.ScalarNode && node.ShortTag() == "!!timestamp" {
		node.Tag = "!!str"
	}
	r.timesAreText(node.Alias)
	for _, part := range node.Content {
		r.timesAreText(part)
	}
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:unmarshal errors:\n *)?(?:line \d+: )?`)

// reason is what a YAML error says beside the line, which the problem has.
func reason(err error) string {
	return fmt.Sprintf("does not read: %s", yamlLine.ReplaceAllString(err.Error(), ""))
}
