package action

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

func TestFields(t *testing.T) {
	patch := func(of PatchType) Action { return Action{Verb: Patch, Options: Options{PatchType: of}} }
	merge, strategic, operations := patch(MergePatch), patch(StrategicMergePatch), patch(JSONPatch)
	create := Action{Verb: Create}
	for _, row := range []struct {
		name   string
		action Action
		body   string
		want   string // separated by spaces; "whole" is the whole object
	}{
		{"a scale", merge, `{"spec":{"replicas":3}}`, "/spec/replicas"},
		{"sorted", merge, `{"z":1,"a":{"c":1,"b":"x"}}`, "/a/b /a/c /z"},
		{"null, false, nothing, list and empty map are leaves", merge, `{"a":null,"b":false,"c":"","d":[{"e":1}],"f":{}}`, "/a /b /c /d /f"},
		{"escaped", merge, `{"metadata":{"annotations":{"a/b~c":"1","":"2"}}}`, "/metadata/annotations/ /metadata/annotations/a~1b~0c"},
		{"a directive is a key in a merge patch", merge, `{"a":{"$patch":"delete","b":1}}`, "/a/$patch /a/b"},
		{"an empty patch", merge, `{}`, "whole"},
		{"an apply", apply(deployments), `{"apiVersion":"v1","kind":"A","metadata":{"name":"a"},"spec":{"a":1}}`, "/apiVersion /kind /metadata/name /spec/a"},
		{"a creation", create, `{"kind":"A","metadata":{"generateName":"a-","labels":{"b":"c"}},"data":null}`, "/data /kind /metadata/generateName /metadata/labels/b"},

		{"a strategic merge", strategic, `{"spec":{"template":{"spec":{"containers":[{"name":"web","image":"web:2"}]}}}}`, "/spec/template/spec/containers"},
		{"$patch makes the map a leaf", strategic, `{"spec":{"strategy":{"$patch":"replace","type":"Recreate"}}}`, "/spec/strategy /spec/strategy/type"},
		{"$patch alone", strategic, `{"metadata":{"labels":{"$patch":"delete"}}}`, "/metadata/labels"},
		{"$patch at the top", strategic, `{"$patch":"replace","spec":{"a":1}}`, "whole /spec/a"},
		{"$retainKeys", strategic, `{"spec":{"strategy":{"$retainKeys":["type"],"type":"Recreate"}}}`, "/spec/strategy /spec/strategy/type"},
		{"an order", strategic, `{"spec":{"$setElementOrder/containers":[{"name":"a"}]}}`, "/spec/containers"},
		{"items of a list of texts", strategic, `{"metadata":{"$deleteFromPrimitiveList/finalizers":["a"]}}`, "/metadata/finalizers"},
		{"a directive about an odd name", strategic, `{"$setElementOrder/a/b~c":[]}`, "/a~1b~0c"},
		{"an unknown directive", strategic, `{"a":{"$new/b":{"c":1}}}`, "/a /a/b"},
		{"a directive about nothing", strategic, `{"a":{"$setElementOrder/":[],"$x":1}}`, "/a"},
		{"a directive for the status", strategic, `{"$setElementOrder/status":[]}`, "/status"},

		{"operations", operations, `[{"op":"replace","path":"/spec/replicas","value":3},{"op":"add","path":"/metadata/labels/a~1b","value":"x"},{"op":"remove","path":"/data"}]`, "/data /metadata/labels/a~1b /spec/replicas"},
		{"a test changes nothing", operations, `[{"op":"test","path":"/spec","value":{"a":1}},{"op":"remove","path":"/data/a"}]`, "/data/a"},
		{"only a test", operations, `[{"op":"test","path":"/a","value":1}]`, ""},
		{"no operation", operations, `[]`, ""},
		{"a move takes from its source", operations, `[{"op":"move","from":"/a/b","path":"/c"}]`, "/a/b /c"},
		{"a copy does not", operations, `[{"op":"copy","from":"/a/b","path":"/c"}]`, "/c"},
		{"a map as value", operations, `[{"op":"add","path":"/spec","value":{"a":{"b":1},"$patch":2}},{"op":"replace","path":"/data","value":{}}]`, "/data /spec /spec/$patch /spec/a/b"},
		{"the whole object", operations, `[{"op":"replace","path":"","value":{"a":1}}]`, "whole /a"},
		{"a field of an item", operations, `[{"op":"replace","path":"/spec/containers/0/image","value":"x"}]`, "/spec/containers/0/image"},
		{"an item in its place", operations, `[{"op":"replace","path":"/spec/containers/0","value":1}]`, "/spec/containers/0"},
		{"an item in the middle moves the others", operations, `[{"op":"add","path":"/a/0","value":1},{"op":"remove","path":"/b/1"}]`, "/a /a/0 /b /b/1"},
		{"the last item", operations, `[{"op":"add","path":"/a/-","value":{"b":1}}]`, "/a /a/- /a/-/b"},
		{"an index from behind, which has another pointer", operations, `[{"op":"replace","path":"/a/-1/b","value":1},{"op":"replace","path":"/c/+0","value":1},{"op":"replace","path":"/d/00","value":1}]`, "/a /a/-1/b /c /c/+0 /d /d/00"},

		{"an unknown operation", operations, `[{"op":"replace","path":"/a","value":1},{"op":"merge","path":"/b","value":1}]`, "whole"},
		{"an operation without a path", operations, `[{"op":"remove"}]`, "whole"},
		{"a path that is no pointer", operations, `[{"op":"remove","path":"x/status"}]`, "whole"},
		{"a source that is no pointer", operations, `[{"op":"move","from":"/a~2","path":"/b"}]`, "whole"},
		{"operations that are no list", operations, `{"op":"remove","path":"/a"}`, "whole"},
		{"an operation that is no object", operations, `["remove"]`, "whole"},
		{"a patch that is no object", merge, `[1]`, "whole"},
		{"a patch without a type", Action{Verb: Patch}, `{"a":1}`, "whole"},
		{"a creation as a patch", Action{Verb: Create, Options: Options{PatchType: MergePatch}}, `{"a":1}`, "whole"},
		{"an update takes away what it leaves out", Action{Verb: Update}, `{"a":1}`, "whole"},
		{"a deletion", Action{Verb: Delete}, `null`, "whole"},
		{"a read", Action{Verb: Get}, `null`, ""},
	} {
		if err := json.Unmarshal([]byte(row.body), &row.action.Body); err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, field := range strings.Fields(row.want) {
			want = append(want, strings.TrimPrefix(field, "whole"))
		}
		if got := row.action.Fields(); !slices.Equal(got, want) {
			t.Errorf("%s: %q; want %q", row.name, got, want)
		}
	}
}

// A few names deep within one another would make pointers of gigabytes.
func TestFieldsAreBounded(t *testing.T) {
	var body any = map[string]any{}
	for i := range 100_000 {
		body.(map[string]any)[fmt.Sprint(i)] = true
	}
	for range 9_000 {
		body = map[string]any{strings.Repeat("k", 100): body}
	}
	if got := (Action{Verb: Create, Body: body}).Fields(); !slices.Equal(got, []string{""}) {
		t.Errorf("%d fields", len(got))
	}
	var many []any
	for i := range 10_000 {
		many = append(many, map[string]any{"op": "remove", "path": strings.Repeat("/k", 1000) + fmt.Sprint(i)})
	}
	if got := (Action{Verb: Patch, Body: many, Options: Options{PatchType: JSONPatch}}).Fields(); !slices.Equal(got, []string{""}) {
		t.Errorf("%d fields", len(got))
	}
}

// listed is an object with the lists and maps that a strategic merge patch
// treats in ways of its own; everything else is merged as in a merge patch.
type listed struct {
	A any               `json:"a" patchStrategy:"retainKeys"`
	B []map[string]any  `json:"b" patchStrategy:"merge" patchMergeKey:"name"`
	C []string          `json:"c" patchStrategy:"merge"`
	D map[string]string `json:"d"`
}

// Whatever a merge patch or a strategic merge patch changes is named: a field
// that changes lies below one of Fields, or holds it.
func FuzzFields(f *testing.F) {
	for _, row := range [][2]string{
		{`{"a":{"b":1,"c":[1]},"d":"x"}`, `{"a":{"b":2,"c":null},"d":{"e":{}}}`},
		{`{"a":{"b":{"c":1}}}`, `{"a":{"b":{"d":{"e":null}}}}`},
		{`{"a":1}`, `{"a":{"b":null},"b":{}}`},
		{`{}`, `{"a/b":{"~":1,"":{"":2}}}`},
		{`{"d":{"x":"1","y":"2"}}`, `{"d":{"$patch":"replace","x":"3"}}`},
		{`{"a":{"x":"1","y":"2"}}`, `{"a":{"$retainKeys":["x"],"x":"3"}}`},
		{`{"b":[{"name":"x","v":1},{"name":"y"}]}`, `{"$setElementOrder/b":[{"name":"y"},{"name":"x"}],"b":[{"name":"x","v":2}]}`},
		{`{"b":[{"name":"x"}]}`, `{"b":[{"name":"x","$patch":"delete"},{"$patch":"replace"}]}`},
		{`{"c":["x","y"]}`, `{"$deleteFromPrimitiveList/c":["x"],"$setElementOrder/c":["y"]}`},
	} {
		f.Add([]byte(row[0]), []byte(row[1]))
	}
	f.Fuzz(func(t *testing.T, live, patch []byte) {
		var object, fresh, body map[string]any
		if json.Unmarshal(live, &object) != nil || json.Unmarshal(patch, &body) != nil || object == nil || body == nil {
			return
		}
		check := func(of PatchType, after any) {
			named := (Action{Verb: Patch, Body: body, Options: Options{PatchType: of}}).Fields()
			for _, changed := range changes("", object, after) {
				if !slices.ContainsFunc(named, func(field string) bool { return within(field, changed) || within(changed, field) }) {
					t.Errorf("%s: %s changes %q of %s and names %q", of.Short(), patch, changed, live, named)
				}
			}
		}
		check(MergePatch, merged(object, body))
		if json.Unmarshal(live, &fresh) != nil {
			t.Fatal("not read a second time")
		}
		var spent map[string]any // the library writes into what it is given
		if json.Unmarshal(patch, &spent) != nil {
			t.Fatal("not read a second time")
		}
		if after, err := strategicpatch.StrategicMergeMapPatch(fresh, spent, listed{}); err == nil {
			check(StrategicMergePatch, map[string]any(after))
		}
	})
}

// within reports whether a JSON Pointer is another, or lies below it.
func within(p, of string) bool { return p == of || strings.HasPrefix(p, of+"/") }

// merged is RFC 7386, section 2.
func merged(target, patch any) any {
	fields, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	out := map[string]any{}
	if object, ok := target.(map[string]any); ok {
		out = maps.Clone(object)
	}
	for key, value := range fields {
		if value == nil {
			delete(out, key)
		} else {
			out[key] = merged(out[key], value)
		}
	}
	return out
}

// changes are the pointers of what differs; Diff leaves out what nobody decides on.
func changes(path string, before, after any) []string {
	a, ok := before.(map[string]any)
	b, both := after.(map[string]any)
	if !ok || !both {
		if reflect.DeepEqual(before, after) {
			return nil
		}
		return []string{path}
	}
	var out []string
	for key := range maps.Keys(a) {
		if value, still := b[key]; still {
			out = append(out, changes(path+"/"+EscapePointer(key), a[key], value)...)
		} else {
			out = append(out, path+"/"+EscapePointer(key))
		}
	}
	for key := range maps.Keys(b) {
		if _, before := a[key]; !before {
			out = append(out, path+"/"+EscapePointer(key))
		}
	}
	return out
}
