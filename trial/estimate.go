package trial

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	kjson "sigs.k8s.io/json"

	"countersign/action"
)

// target names an object.
type target struct{ resource, namespace, name string }

// index finds out what the live objects are.
func (r *run) index(ctx context.Context) (map[target]map[string]any, error) {
	live := map[target]map[string]any{}
	for i, object := range r.Live {
		bad := func(err error) (map[target]map[string]any, error) {
			return nil, fmt.Errorf("live, object %d: %w", i+1, err)
		}
		apiVersion, _ := object["apiVersion"].(string)
		kind, _ := object["kind"].(string)
		if apiVersion == "" || kind == "" {
			return bad(errors.New("apiVersion and kind are needed"))
		}
		resource, err := r.kinds.Resolve(ctx, r.Cluster, apiVersion, kind)
		if err != nil {
			return bad(err)
		}
		meta, _ := object["metadata"].(map[string]any)
		name, _ := meta["name"].(string)
		namespace, _ := meta["namespace"].(string)
		switch {
		case name == "":
			return bad(errors.New("metadata.name is needed"))
		case resource.Namespaced && namespace == "":
			return bad(fmt.Errorf("%s %s needs metadata.namespace", kind, name))
		case !resource.Namespaced && namespace != "":
			return bad(fmt.Errorf("%s %s does not live in a namespace: leave metadata.namespace out", kind, name))
		}
		at := target{resource.GroupResource(), namespace, name}
		if live[at] != nil {
			return bad(fmt.Errorf("%s %s is given twice", kind, name))
		}
		live[at] = seen(object)
	}
	return live, nil
}

// seen copies an object as a server's look at it would be: without managedFields
// and with a Secret's stringData where the API server keeps it.
func seen(object map[string]any) map[string]any {
	object = runtime.DeepCopyJSON(object)
	if meta, ok := object["metadata"].(map[string]any); ok {
		delete(meta, "managedFields")
	}
	texts, ok := object["stringData"].(map[string]any)
	if object["kind"] != "Secret" || object["apiVersion"] != "v1" || !ok {
		return object
	}
	delete(object, "stringData")
	data, ok := object["data"].(map[string]any)
	if !ok {
		data = map[string]any{}
		object["data"] = data
	}
	for key, value := range texts {
		if text, ok := value.(string); ok {
			data[key] = base64.StdEncoding.EncodeToString([]byte(text))
		}
	}
	return object
}

// preview estimates the Preview of a request, from the live object that the
// call gives and the body of the request. Defaults, validation, admission and
// webhooks are left out, and an apply takes away nothing that it leaves out:
// where a rule hangs on those, the call says what the dry run would answer.
func (r *run) preview(a action.Action, given map[string]any) (action.Preview, error) {
	live, err := r.before(a)
	if err != nil {
		return action.Preview{}, err
	}
	apply := a.Options.PatchType == action.ApplyPatch
	switch {
	case a.Verb == action.Create && live != nil:
		return action.Preview{}, errors.New("it is there already: a creation is of what is not under live, and of a Namespace that is under absent")
	case live == nil && a.Verb != action.Create && !apply && (given == nil || a.Verb == action.Delete):
		return action.Preview{}, errors.New("it is not there: give the object under live")
	case a.Verb == action.Delete:
		return action.NewPreview(live, nil), nil
	case given != nil:
		return action.NewPreview(live, zeroReplicas(a, seen(given))), nil
	}
	after, err := r.after(a, live)
	if err != nil {
		return action.Preview{}, fmt.Errorf("estimating what it makes of the object (give it under result instead): %w", err)
	}
	return action.NewPreview(live, zeroReplicas(a, seen(after))), nil
}

// before is what a request is about, as it is now, nil when there is none.
func (r *run) before(a action.Action) (map[string]any, error) {
	resource := a.Resource.GroupResource()
	object := r.live[target{resource, a.Namespace, a.Name}]
	if resource == "namespaces" && a.Name != "" {
		object = r.namespace(a.Name)
	}
	switch {
	case a.Subresource == "" || object == nil:
		return object, nil
	case a.Subresource != "scale":
		return nil, fmt.Errorf("what it does to %s/%s cannot be estimated", resource, a.Subresource)
	}
	spec, _ := object["spec"].(map[string]any)
	status, _ := object["status"].(map[string]any)
	orElse := func(v any, other int64) any {
		if v == nil {
			return other
		}
		return v
	}
	meta := map[string]any{}
	from := object["metadata"].(map[string]any)
	for _, key := range []string{"name", "namespace", "uid", "resourceVersion", "creationTimestamp"} {
		if v := from[key]; v != nil {
			meta[key] = v
		}
	}
	return map[string]any{
		"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": meta,
		"spec":   map[string]any{"replicas": orElse(spec["replicas"], 1)}, // what a workload has that says nothing
		"status": map[string]any{"replicas": orElse(status["replicas"], 0)},
	}, nil
}

// zeroReplicas writes the zero out that a Scale leaves out, as kube does.
func zeroReplicas(a action.Action, object map[string]any) map[string]any {
	if spec, ok := object["spec"].(map[string]any); ok && a.Subresource == "scale" && spec["replicas"] == nil {
		spec["replicas"] = int64(0)
	}
	return object
}

// after is what a creation or patch makes of an object. It may share parts with
// the body and with live.
func (r *run) after(a action.Action, live map[string]any) (map[string]any, error) {
	body, isObject := a.Body.(map[string]any)
	if isObject {
		body = runtime.DeepCopyJSON(body)
	}
	if a.Verb == action.Create || live == nil {
		meta, _ := body["metadata"].(map[string]any)
		if prefix, ok := meta["generateName"].(string); ok && a.Name == "" {
			meta["name"] = prefix + "xxxxx"
		}
		return body, nil
	}
	resource := a.Resource
	if a.Subresource == "scale" {
		resource = action.Resource{Group: "autoscaling", Version: "v1", Kind: "Scale"}
	}
	live = runtime.DeepCopyJSON(live)
	switch a.Options.PatchType {
	case action.ApplyPatch, action.StrategicMergePatch:
		if known := r.kinds.Struct(resource); known != nil {
			return strategicpatch.StrategicMergeMapPatch(live, body, known)
		}
		if a.Options.PatchType == action.StrategicMergePatch {
			return nil, errors.New("how its lists are merged is not known, and custom kinds take no strategic merge patch")
		}
		return patched(live, body, jsonpatch.MergePatch)
	case action.MergePatch:
		return patched(live, body, jsonpatch.MergePatch)
	case action.JSONPatch:
		return patched(live, a.Body, func(doc, patch []byte) ([]byte, error) {
			operations, err := jsonpatch.DecodePatch(patch)
			if err != nil {
				return nil, err
			}
			boundCopies()
			return operations.Apply(doc)
		})
	}
	return nil, fmt.Errorf("patch type %q is not known", a.Options.PatchType)
}

// maxCopied bounds what the copies of one JSON Patch add up to, as the API
// server does: few operations can otherwise double an object again and again.
const maxCopied = 3 << 20

// boundCopies sets the bound, which the library has for the whole process only.
var boundCopies = sync.OnceFunc(func() { jsonpatch.AccumulatedCopySizeLimit = maxCopied })

func patched(live map[string]any, body any, apply func(doc, patch []byte) ([]byte, error)) (map[string]any, error) {
	doc, err := action.Canonical(live)
	if err != nil {
		return nil, err
	}
	patch, err := action.Canonical(body)
	if err != nil {
		return nil, err
	}
	if doc, err = apply(doc, patch); err != nil {
		return nil, err
	}
	var object map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(doc, &object); err != nil {
		return nil, err
	}
	if object == nil {
		return nil, errors.New("it would be no object any more")
	}
	return object, nil
}
