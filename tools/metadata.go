package tools

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"countersign/action"
)

const (
	maxKeys = 50
	// maxKeyBytes bounds all keys and values of a call: they are recorded as arguments.
	maxKeyBytes = 16 << 10
)

type setMetadataInput struct {
	Kind      string            `json:"kind" jsonschema:"kind, plural or short name"`
	Name      string            `json:"name"`
	Namespace string            `json:"namespace,omitempty"`
	Set       map[string]string `json:"set,omitempty"`
	Remove    []string          `json:"remove,omitempty" jsonschema:"keys"`
	Reason    string            `json:"reason,omitempty" jsonschema:"why; approvers see it as your words"`
}

func setLabels() *Tool {
	return setMetadata(Tool{
		Name:        "set_labels",
		Title:       "Set labels",
		Description: "Sets and removes labels of one object; others stay.",
	}, "labels", "labeled", checkLabel)
}

func setAnnotations() *Tool {
	return setMetadata(Tool{
		Name:        "set_annotations",
		Title:       "Set annotations",
		Description: "Sets and removes annotations of one object; others stay.",
	}, "annotations", "annotated", checkAnnotation)
}

// setMetadata defines a tool that changes one of the two maps in an object's
// metadata. check says what is wrong with a key and its value.
func setMetadata(t Tool, field, done string, check func(key, value string) error) *Tool {
	t.Scopes = []action.Scope{{Verbs: []string{action.Patch}}}
	return define(t, func(s *jsonschema.Schema) {
		set, remove := s.Properties["set"], s.Properties["remove"]
		set.Types, set.Type, set.MaxProperties = nil, "object", jsonschema.Ptr(maxKeys)
		remove.Types, remove.Type, remove.MaxItems = nil, "array", jsonschema.Ptr(maxKeys)
		limitReason(s)
	}, func(ctx context.Context, r Reader, cluster string, in setMetadataInput) (Call, error) {
		values, err := metadataPatch(in.Set, in.Remove, check)
		if err != nil {
			return Call{}, err
		}
		resource, err := r.Resolve(ctx, cluster, "", in.Kind)
		if err != nil {
			return Call{}, err
		}
		return changeOne(mergePatch(resource, in.Namespace, in.Name, map[string]any{"metadata": map[string]any{field: values}}), in.Reason)
	}, renderChange(done))
}

// metadataPatch is the merge patch of a map: null takes a key away (RFC 7386).
func metadataPatch(set map[string]string, remove []string, check func(key, value string) error) (map[string]any, error) {
	if len(set)+len(remove) == 0 {
		return nil, BadArgument("nothing to do: give set, remove or both")
	}
	values, size := map[string]any{}, 0
	for _, key := range slices.Sorted(maps.Keys(set)) {
		if err := check(key, set[key]); err != nil {
			return nil, err
		}
		values[key] = set[key]
		size += len(key) + len(set[key])
	}
	for _, key := range remove {
		if err := check(key, ""); err != nil {
			return nil, err
		}
		if _, both := set[key]; both {
			return nil, BadArgument("%s is in set and in remove: leave it in one of them", key)
		}
		values[key] = nil
		size += len(key)
	}
	if size > maxKeyBytes {
		return nil, BadArgument("the keys and values are %d bytes; %d is the most that is taken: give fewer in one call, or use patch_resource", size, maxKeyBytes)
	}
	return values, nil
}

func checkLabel(key, value string) error {
	if wrong := validation.IsQualifiedName(key); len(wrong) > 0 {
		return BadArgument("label key %.100q: %s", key, strings.Join(wrong, "; "))
	}
	if wrong := validation.IsValidLabelValue(value); len(wrong) > 0 {
		return BadArgument("value of label %s: %s; put other text into an annotation", key, strings.Join(wrong, "; "))
	}
	return nil
}

func checkAnnotation(key, _ string) error {
	// As the API server does, which takes upper case in the part before the slash.
	if wrong := validation.IsQualifiedName(strings.ToLower(key)); len(wrong) > 0 {
		return BadArgument("annotation key %.100q: %s", key, strings.Join(wrong, "; "))
	}
	if key == corev1.LastAppliedConfigAnnotation {
		return BadArgument("%s is what kubectl apply goes by: leave it out", key)
	}
	return nil
}

// mergePatch is a request that changes some fields of one object (RFC 7386).
func mergePatch(resource action.Resource, namespace, name string, body map[string]any) action.Action {
	return action.Action{
		Verb: action.Patch, Resource: resource, Namespace: namespace, Name: name, Body: body,
		Options: action.Options{PatchType: action.MergePatch, FieldManager: FieldManager},
	}
}

// changeOne is a call of one change to one object.
func changeOne(a action.Action, reason string) (Call, error) {
	return Call{Plan: action.Plan{Actions: []action.Action{a}}, Reason: reason}, checkTarget(a)
}
