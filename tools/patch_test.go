package tools

import (
	"errors"
	"strings"
	"testing"

	"countersign/action"
)

func patched(t testing.TB, kind, of, patch string) (Call, error) {
	t.Helper()
	args := map[string]any{"kind": kind, "name": "a", "patch": patch}
	if of != "" {
		args["type"] = of
	}
	if kind != "node" {
		args["namespace"] = "shop"
	}
	return tool(t, "patch_resource").Plan(t.Context(), cluster(), args)
}

func TestPatchRefused(t *testing.T) {
	const empty = "the patch is empty: name a field to change"
	const status = "status cannot be patched: leave it out"
	for _, row := range []struct{ name, kind, of, patch, want string }{
		// What it is.
		{"nothing", "pod", "", "", empty},
		{"a comment", "pod", "", "# nothing", empty},
		{"no fields", "pod", "", "{}", empty},
		{"no fields but the kind", "pod", "strategic", "{apiVersion: v1, kind: Pod}", empty},
		{"no operations", "pod", "json", "[]", empty},
		{"only a test", "pod", "json", "[{op: test, path: /spec, value: 1}]", empty},
		{"text", "pod", "", "replicas", "the patch is not an object: write the fields to change as the object has them, or use type json for a list of operations"},
		{"operations without the type", "pod", "", "[{op: remove, path: /a}]", "the patch is not an object: "},
		{"operations as a strategic merge", "pod", "strategic", "[{op: remove, path: /a}]", "the patch is not an object: "},
		{"fields as operations", "pod", "json", "{op: remove, path: /a}", `the patch is not a list of operations: write [{"op": "replace", `},
		{"what does not parse", "pod", "", "{a: [}", "the patch does not parse: did not find expected node content"},
		{"a key twice", "pod", "", "{a: 1, a: 2}", `the patch does not parse: line 1: key "a" already set in map`},
		{"a key twice, in JSON", "pod", "json", `[{"op":"remove","path":"/a","path":"/status"}]`, `the patch does not parse: duplicate field "[0].path"`},
		{"two documents", "pod", "", "a: 1\n---\nstatus: 1\n", `the patch holds more than one: `},
		{"large", "pod", "", "a: " + strings.Repeat("x", maxManifest), "the patch is 1048579 bytes; 1048576 is the most that is taken: change less in one call"},
		{"large when written out", "pod", "", "a: &a " + strings.Repeat("x", 600_000) + "\nb: *a\n", "the patch is 1200015 bytes when it is written out; 1048576 is the most"},
		{"aliases of aliases", "pod", "", bomb(20), "the patch unfolds to more than 4194304 bytes"},
		{"another kind", "pod", "", "{kind: Secret, spec: {}}", "kind of the patch is not Pod: leave it out"},
		{"another version", "deploy", "strategic", "{apiVersion: apps/v1beta1, spec: {}}", "apiVersion of the patch is not apps/v1: leave it out"},
		{"the version without its group", "deploy", "", "{apiVersion: v1, spec: {}}", "apiVersion of the patch is not apps/v1: leave it out"},
		{"no kind", "pod", "", "{kind: null, spec: {}}", "kind of the patch is not Pod: leave it out"},

		// Operations.
		{"201 operations", "pod", "json", "[" + strings.Repeat("{op: remove, path: /a},", 201) + "]", "the patch has 201 operations; 200 is the most that is taken: change less in one call"},
		{"an operation that is text", "pod", "json", "[remove]", "patch, operation 1 is not an object: "},
		{"an unknown member", "pod", "json", "[{op: remove, path: /a}, {op: remove, path: /a, force: true}]", "patch, operation 2 has a member that is not op, path, from or value: leave it out"},
		{"a member in another case", "pod", "json", "[{op: remove, Path: /a}]", "patch, operation 1 has a member that is not "},
		{"no operation", "pod", "json", "[{path: /a}]", "patch, operation 1: op is not one of add, remove, replace, move, copy, test"},
		{"an operation of another kind", "pod", "json", "[{op: [add], path: /a, value: 1}]", "patch, operation 1: op is not one of "},
		{"an unknown operation", "pod", "json", "[{op: merge, path: /a, value: 1}]", "patch, operation 1: op is not one of "},
		{"no value", "pod", "json", "[{op: add, path: /a}]", "patch, operation 1: value is missing"},
		{"no path", "pod", "json", "[{op: remove}]", "patch, operation 1: path is not a JSON Pointer: "},
		{"a path that the API server would take for another", "pod", "json", "[{op: replace, path: x/status, value: 1}]", "patch, operation 1: path is not a JSON Pointer: "},
		{"a path with an odd escape", "pod", "json", "[{op: remove, path: /a~2}]", "patch, operation 1: path is not a JSON Pointer: "},
		{"no source", "pod", "json", "[{op: copy, path: /a}]", "patch, operation 1: from is not a JSON Pointer: "},
		{"a source that is no pointer", "pod", "json", "[{op: move, from: a, path: /a}]", "patch, operation 1: from is not a JSON Pointer: "},

		// What nobody could see.
		{"status", "pod", "", "{status: {phase: Running}}", status},
		{"no status", "pod", "", "{spec: {}, status: null}", status},
		{"status in a strategic merge", "pod", "strategic", "{status: {phase: Running}}", status},
		{"an order for the status", "pod", "strategic", "{$setElementOrder/status: []}", status},
		{"all of it replaced", "pod", "strategic", "{$patch: replace, spec: {}}", status + ", and give the fields of the object one by one"},
		{"all but some of it", "pod", "strategic", "{$retainKeys: [spec], spec: {}}", status + ", and give the fields of the object one by one"},
		{"status by an operation", "pod", "json", "[{op: add, path: /status/phase, value: Running}]", status},
		{"status taken away", "pod", "json", "[{op: move, from: /status/phase, path: /metadata/labels/a}]", status},
		{"all of it by an operation", "pod", "json", "[{op: replace, path: '', value: {spec: {}}}]", status + ", and give the fields of the object one by one"},
		{"managedFields", "pod", "", "{metadata: {managedFields: []}}", "metadata.managedFields cannot be patched: leave it out"},
		{"an item of managedFields", "pod", "json", "[{op: remove, path: /metadata/managedFields/0}]", "metadata.managedFields cannot be patched: leave it out"},
		{"name", "pod", "", "{metadata: {name: a}}", "metadata.name cannot be patched: leave it out"},
		{"namespace", "pod", "", "{metadata: {namespace: shop}}", "metadata.namespace cannot be patched: leave it out"},
		{"uid", "pod", "json", "[{op: replace, path: /metadata/uid, value: x}]", "metadata.uid cannot be patched: leave it out"},
		{"generateName", "pod", "", "{metadata: {generateName: a-}}", "metadata.generateName cannot be patched: leave it out"},
		{"all of the metadata", "pod", "json", "[{op: replace, path: /metadata, value: {labels: {}}}]", "metadata.managedFields cannot be patched: leave it out, and give the fields of metadata one by one"},
		{"no metadata", "pod", "", "{metadata: null}", "metadata.managedFields cannot be patched: leave it out, and give the fields of metadata one by one"},
		{"metadata replaced", "pod", "strategic", "{metadata: {$patch: replace, labels: {a: b}}}", "metadata.managedFields cannot be patched: leave it out, and "},
		{"the version by an operation", "pod", "json", "[{op: replace, path: /apiVersion, value: v1}]", "apiVersion cannot be patched: leave it out"},
		{"the kind by an operation", "pod", "json", "[{op: remove, path: /kind}]", "kind cannot be patched: leave it out"},

		// What would show the value of a Secret.
		{"a value copied to where it shows", "secret", "json", "[{op: copy, from: /data/password, path: /metadata/annotations/a}]", "patch, operation 1: copy is not for Secrets, because it can show their values: use add, replace or remove"},
		{"a value moved to where it shows", "secret", "json", "[{op: move, from: /metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration, path: /metadata/annotations/a}]", "patch, operation 1: move is not for Secrets"},
		{"a value guessed", "secret", "json", "[{op: test, path: /data/pin, value: MTIzNA==}, {op: remove, path: /metadata/labels/a}]", "patch, operation 1: test is not for Secrets"},
	} {
		t.Run(row.name, func(t *testing.T) {
			call, err := patched(t, row.kind, row.of, row.patch)
			var argument *ArgumentError
			if !errors.As(err, &argument) || !strings.HasPrefix(err.Error(), row.want) || len(call.Plan.Actions) > 0 {
				t.Errorf("got  %v\nwant %s", err, row.want)
			}
		})
	}
}

func TestPatchShapes(t *testing.T) {
	for _, row := range []struct{ name, kind, of, patch, want string }{
		{"a merge patch", "deploy", "", "spec: {replicas: 2, paused: null}", `{"spec":{"paused":null,"replicas":2}}`},
		{"a merge patch by name, as JSON", "deploy", "merge", `{"metadata":{"labels":{"a\/b":"\ud83d\ude00"}}}`, `{"metadata":{"labels":{"a/b":"😀"}}}`},
		{"what the request says already is left out", "deploy", "strategic", "{apiVersion: apps/v1, kind: Deployment, spec: {paused: true}}", `{"spec":{"paused":true}}`},
		{"of the core group", "node", "", "{apiVersion: v1, kind: Node, spec: {unschedulable: true}}", `{"spec":{"unschedulable":true}}`},
		{"a version to be met", "deploy", "", `{metadata: {resourceVersion: "7", labels: {a: b}}}`, `{"metadata":{"labels":{"a":"b"},"resourceVersion":"7"}}`},
		{"operations", "deploy", "json", "- {op: test, path: /status/replicas, value: 2}\n- {op: copy, from: /metadata/name, path: /metadata/labels/a~1b}\n- {op: add, path: /spec/template/spec/containers/-, value: null}\n",
			`[{"op":"test","path":"/status/replicas","value":2},{"from":"/metadata/name","op":"copy","path":"/metadata/labels/a~1b"},{"op":"add","path":"/spec/template/spec/containers/-","value":null}]`},
		{"fields named like those that are not for patches", "cm", "", "{data: {status: a, kind: b}, metadata: {annotations: {name: c}}}", `{"data":{"kind":"b","status":"a"},"metadata":{"annotations":{"name":"c"}}}`},
		{"a directive in a merge patch is a key", "cm", "", "{data: {$patch: replace}}", `{"data":{"$patch":"replace"}}`},
		{"a Secret", "secret", "json", "[{op: replace, path: /data/a, value: aHVudGVyMg==}, {op: remove, path: /data/b}]", `[{"op":"replace","path":"/data/a","value":"aHVudGVyMg=="},{"op":"remove","path":"/data/b"}]`},
		{"200 operations", "cm", "json", "[" + strings.Repeat("{op: remove, path: /data/a},", 200) + "]", "[" + strings.TrimSuffix(strings.Repeat(`{"op":"remove","path":"/data/a"},`, 200), ",") + "]"},
	} {
		call, err := patched(t, row.kind, row.of, row.patch)
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		a := call.Plan.Actions[0]
		got, err := action.Canonical(a.Body)
		if err != nil || string(got) != row.want {
			t.Errorf("%s: %v\ngot  %s\nwant %s", row.name, err, got, row.want)
		}
		if want := map[string]action.PatchType{"": action.MergePatch, "merge": action.MergePatch, "strategic": action.StrategicMergePatch, "json": action.JSONPatch}[row.of]; a.Options.PatchType != want || a.Options.FieldManager != "countersign" {
			t.Errorf("%s: options %+v", row.name, a.Options)
		}
	}
}
