package tools

import (
	"cmp"
	"context"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"

	"countersign/action"
)

type patchResourceInput struct {
	Kind      string `json:"kind" jsonschema:"kind, plural or short name"`
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"`
	Patch     string `json:"patch" jsonschema:"JSON or YAML, at most 1 MiB; for json a list of operations, else the fields to change"`
	Type      string `json:"type,omitempty" jsonschema:"merge (RFC 7386, the default), strategic (lists are merged by key; built-in kinds only) or json (RFC 6902)"`
	Reason    string `json:"reason,omitempty" jsonschema:"why; approvers see it as your words"`
}

func patchResource() *Tool {
	return define(Tool{
		Name:        "patch_resource",
		Title:       "Patch one resource",
		Description: "Changes the fields of one object that the patch names, and leaves the others as they are.",
		Scopes:      []action.Scope{{Verbs: []string{action.Patch}}},
	}, func(s *jsonschema.Schema) {
		s.Properties["type"].Enum = []any{"merge", "strategic", "json"}
		limitReason(s)
	}, func(ctx context.Context, r Reader, cluster string, in patchResourceInput) (Call, error) {
		resource, err := r.Resolve(ctx, cluster, "", in.Kind)
		if err != nil {
			return Call{}, err
		}
		a := action.Action{
			Verb: action.Patch, Resource: resource, Namespace: in.Namespace, Name: in.Name,
			Options: action.Options{PatchType: action.MergePatch, FieldManager: FieldManager},
		}
		switch in.Type {
		case "strategic":
			a.Options.PatchType = action.StrategicMergePatch
		case "json":
			a.Options.PatchType = action.JSONPatch
		}
		if err := checkTarget(a); err != nil {
			return Call{}, err
		}
		if a.Body, err = parsePatch(in.Patch, a); err != nil {
			return Call{}, err
		}
		return Call{Plan: action.Plan{Actions: []action.Action{a}}, Reason: in.Reason}, checkPatched(a)
	}, renderChange("patched"))
}

// parsePatch reads the body of a patch. What it says that the request says
// already, version and kind, is left out.
func parsePatch(text string, a action.Action) (any, error) {
	if len(text) > maxManifest {
		return nil, BadArgument("the patch is %d bytes; %d is the most that is taken: change less in one call", len(text), maxManifest)
	}
	value, err := decodeDocument([]byte(text))
	if err != nil {
		return nil, BadArgument("the patch %v", err)
	}
	if value == nil {
		return nil, BadArgument("the patch is empty: name a field to change")
	}
	if a.Options.PatchType == action.JSONPatch {
		list, ok := value.([]any)
		if !ok {
			return nil, BadArgument(`the patch is not a list of operations: write [{"op": "replace", "path": "/spec/replicas", "value": 3}], or use another type`)
		}
		return list, checkOperations(list, a.Resource.GroupResource() == "secrets")
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, BadArgument("the patch is not an object: write the fields to change as the object has them, or use type json for a list of operations")
	}
	version := strings.TrimPrefix(a.Resource.Group+"/"+a.Resource.Version, "/")
	for _, same := range [][2]string{{"apiVersion", version}, {"kind", a.Resource.Kind}} {
		if given, found := object[same[0]]; found && given != same[1] {
			return nil, BadArgument("%s of the patch is not %s: leave it out", same[0], same[1])
		}
		delete(object, same[0])
	}
	return object, nil
}

// maxOperations bounds a JSON Patch: each operation is work for the API server.
const maxOperations = 200

// checkOperations refuses what is not JSON Patch as RFC 6902 has it. The API
// server takes more, and reads it in ways that nobody would guess.
func checkOperations(list []any, secret bool) error {
	if len(list) > maxOperations {
		return BadArgument("the patch has %d operations; %d is the most that is taken: change less in one call", len(list), maxOperations)
	}
	for i, item := range list {
		op, ok := item.(map[string]any)
		if !ok {
			return BadArgument(`patch, operation %d is not an object: write {"op": "replace", "path": "/spec/replicas", "value": 3}`, i+1)
		}
		for member := range op {
			switch member {
			case "op", "path", "from", "value":
			default: // its name is not repeated: it may be a value in the wrong place
				return BadArgument("patch, operation %d has a member that is not op, path, from or value: leave it out", i+1)
			}
		}
		_, hasValue := op["value"]
		switch op["op"] {
		case "add", "replace", "test":
			if !hasValue {
				return BadArgument("patch, operation %d: value is missing", i+1)
			}
		case "remove":
		case "move", "copy":
			if from, ok := op["from"].(string); !ok || !action.ValidPointer(from) {
				return BadArgument("patch, operation %d: from is not a JSON Pointer: write it as in /metadata/labels/app", i+1)
			}
		default:
			return BadArgument("patch, operation %d: op is not one of add, remove, replace, move, copy, test", i+1)
		}
		if path, ok := op["path"].(string); !ok || !action.ValidPointer(path) {
			return BadArgument("patch, operation %d: path is not a JSON Pointer: write it as in /metadata/labels/app, with ~1 for a slash within a name", i+1)
		}
		if op := op["op"]; secret && (op == "test" || op == "move" || op == "copy") {
			// A value that is copied to an annotation can be read there, and a test
			// tells whether a guess is right.
			return BadArgument("patch, operation %d: %s is not for Secrets, because it can show their values: use add, replace or remove", i+1, op)
		}
	}
	return nil
}

// unpatchable are the fields that a patch may not name: what controllers report
// and the bookkeeping, which are left out of every diff, so that nobody could
// see them change, and what says which object it is.
var unpatchable = []string{
	"/status", "/metadata/managedFields", "/metadata/name", "/metadata/namespace", "/metadata/uid", "/metadata/generateName", "/apiVersion", "/kind",
	"/metadata/generation", "/metadata/creationTimestamp",
}

// checkPatched refuses a patch for the fields that it names.
func checkPatched(a action.Action) error {
	body, err := action.Canonical(a.Body)
	if err != nil {
		return err
	}
	if len(body) > maxManifest {
		return BadArgument("the patch is %d bytes when it is written out; %d is the most that is taken: change less in one call", len(body), maxManifest)
	}
	named := a.Fields()
	if object, ok := a.Body.(map[string]any); len(named) == 0 || ok && len(object) == 0 {
		return BadArgument("the patch is empty: name a field to change")
	}
	for _, field := range unpatchable {
		text := strings.ReplaceAll(field[1:], "/", ".") + " cannot be patched: leave it out"
		for _, name := range named {
			if name == field || strings.HasPrefix(name, field+"/") {
				return BadArgument("%s", text)
			}
			if strings.HasPrefix(field, name+"/") { // the patch is about what holds it
				return BadArgument("%s, and give the fields of %s one by one", text, cmp.Or(strings.TrimPrefix(name, "/"), "the object"))
			}
		}
	}
	return nil
}
