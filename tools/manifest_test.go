package tools

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"countersign/action"
)

func applied(t testing.TB, manifest, namespace string) (Call, error) {
	t.Helper()
	args := map[string]any{"manifest": manifest}
	if namespace != "" {
		args["namespace"] = namespace
	}
	return tool(t, "apply_manifest").Plan(t.Context(), cluster(), args)
}

const cm = "{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: shop}}"

func TestManifestRefused(t *testing.T) {
	head := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: shop}\n"
	for _, row := range []struct{ name, manifest, want string }{
		// It is not a manifest.
		{"empty", "", "the manifest holds no object"},
		{"white space", " \n\n", "the manifest holds no object"},
		{"only comments", "# a\n---\n# b\n", "the manifest holds no object"},
		{"only null", "~\n---\nnull\n", "the manifest holds no object"},
		{"an empty list", "kind: List\napiVersion: v1\nitems: []\n", "the manifest holds no object"},
		{"text", "just text", "manifest, document 1 is not an object"},
		{"a list", "- " + cm, "manifest, document 1 is not an object"},
		{"second is a number", cm + "\n---\n7\n", "manifest, document 2 is not an object"},
		{"10 MiB", head + "data: {a: " + strings.Repeat("x", 10<<20) + "}\n", "the manifest is 10485840 bytes; 1048576 is the most that is taken: give the objects in several calls"},
		{"51 objects", strings.Repeat(cm+"\n---\n", 51), "the manifest holds more than 50 objects: give them in several calls"},
		{"51 objects in a list", "{kind: List, items: [" + strings.Repeat(cm+",", 51) + "]}", "the manifest holds more than 50 objects: give them in several calls"},
		// It does not parse.
		{"open quote", head + "data: {a: \"x}\n", "manifest, document 1 does not parse: line "},
		{"tab", head + "data:\n\ta: b\n", "manifest, document 1 does not parse: line 5: found character that cannot start any token"},
		{"not UTF-8", head + "data: {a: \xff}\n", "manifest, document 1 does not parse: not valid YAML"},
		{"duplicate key", head + "kind: Secret\n", "manifest, document 1 does not parse: line 4: key \"kind\" already set in map"},
		{"duplicate key, deep", head + "data: {a: b, a: c}\n", "manifest, document 1 does not parse: line 4: key \"a\" already set in map"},
		{"duplicate key, JSON", `{"apiVersion":"v1","kind":"ConfigMap","kind":"Secret"}`, "manifest, document 1 does not parse: duplicate field \"kind\""},
		{"duplicate key, escaped", `{"kind":"ConfigMap","\u006bind":"Secret"}`, "manifest, document 1 does not parse: duplicate field \"kind\""},
		{"duplicate key, JSON, deep", `{"kind":"ConfigMap","data":{"a":"b","a":"c"}}`, "manifest, document 1 does not parse: duplicate field \"data.a\""},
		{"a list as key", "? [a]\n: b\n", "manifest, document 1 does not parse: invalid map key"},
		{"infinity", head + "data: {a: .inf}\n", "manifest, document 1 does not parse: unsupported value"},
		{"another YAML", "%YAML 1.2\n---\n" + head, "manifest, document 1 does not parse: found incompatible YAML document"},
		{"an anchor within itself", "a: &a [*a]\n", "manifest, document 1 does not parse: value contains itself"},
		{"an unknown alias", "a: *b\n", "manifest, document 1 does not parse: unknown anchor"},
		{"a secret value as alias", "password: *hunter2\n", "manifest, document 1 does not parse: unknown anchor"},
		{"a secret value under a tag", "{kind: Secret, stringData: {pin: !!int hunter2}}\n", "manifest, document 1 does not parse: "},
		{"status", head + "status: {role: admin}\n", "manifest, object 1: status cannot be applied: leave it out"},
		{"one object twice", cm + "\n---\n" + cm, "manifest, objects 1 and 2 are the same ConfigMap a: write it once"},
		{"few aliases of much", "a: &a " + strings.Repeat("x", 100_000) + "\nb: [" + strings.Repeat("*a,", 100_000) + "]\n", "manifest, document 1 unfolds to more than 4194304 bytes: write it without so many aliases"},
		{"aliases of aliases", bomb(20), "manifest, document 1 unfolds to more than 4194304 bytes: write it without so many aliases"},
		// It would be read in part.
		{"a second one on the line of the separator", cm + "\n--- " + cm, `manifest, document 1: a line begins with "---" and goes on: write "---" on a line of its own`},
		{"a second one behind an end", cm + "\n...\n" + cm, `manifest, document 1 holds more than one: write "---" on a line of its own between them`},
		{"a second one behind another line break", cm + "\r---\r" + cm, `manifest, document 1 holds more than one: write "---" on a line of its own between them`},
		// What it is.
		{"no kind", "apiVersion: v1\nmetadata: {name: a}\n", "manifest, object 1: apiVersion and kind are needed"},
		{"no apiVersion", "kind: ConfigMap\nmetadata: {name: a}\n", "manifest, object 1: apiVersion and kind are needed"},
		{"kind in another case", "apiVersion: v1\nKind: ConfigMap\nmetadata: {name: a}\n", "manifest, object 1: apiVersion and kind are needed"},
		{"a number for apiVersion", "apiVersion: 1\nkind: ConfigMap\n", "manifest, object 1: apiVersion and kind are needed"},
		{"unknown kind", "apiVersion: v1\nkind: Gadget\nmetadata: {name: a, namespace: shop}\n", `manifest, object 1: cluster local serves no kind "v1 Gadget"`},
		{"another version", "apiVersion: apps/v1beta1\nkind: Deployment\nmetadata: {name: a, namespace: shop}\n", `manifest, object 1: cluster local serves no kind "apps/v1beta1 Deployment"`},
		{"the kind of a list without items", "apiVersion: v1\nkind: List\n", `manifest, object 1: cluster local serves no kind "v1 List"`},
		{"a list of text", "apiVersion: v1\nkind: List\nitems: [a]\n", "manifest, document 1: a list holds something that is not an object"},
		{"lists too deep", strings.Repeat("{kind: List, items: [", 5) + cm + strings.Repeat("]}", 5), "manifest, document 1: lists within lists within lists: write the objects one after the other"},
		{"the second of a list", "kind: List\nitems: [" + cm + ", {kind: ConfigMap}]\n", "manifest, object 2: apiVersion and kind are needed"},
		{"the second document", cm + "\n---\nkind: ConfigMap\n", "manifest, object 2: apiVersion and kind are needed"},
		// What it is called, and where it is.
		{"no metadata", "apiVersion: v1\nkind: ConfigMap\n", "manifest, object 1: metadata.name is needed"},
		{"metadata is text", "apiVersion: v1\nkind: ConfigMap\nmetadata: a\n", "manifest, object 1: metadata.name is needed"},
		{"no name", "apiVersion: v1\nkind: ConfigMap\nmetadata: {namespace: shop}\n", "manifest, object 1: metadata.name is needed; generateName cannot be applied"},
		{"generateName", "apiVersion: v1\nkind: ConfigMap\nmetadata: {namespace: shop, generateName: a-}\n", "manifest, object 1: metadata.name is needed; generateName cannot be applied"},
		{"a number for a name", "apiVersion: v1\nkind: ConfigMap\nmetadata: {namespace: shop, name: 123}\n", "manifest, object 1: metadata.name is not text: write it in quotes"},
		{"yes for a name", "apiVersion: v1\nkind: ConfigMap\nmetadata: {namespace: shop, name: yes}\n", "manifest, object 1: metadata.name is not text: write it in quotes"},
		{"a number for a namespace", "apiVersion: v1\nkind: ConfigMap\nmetadata: {namespace: 012, name: a}\n", "manifest, object 1: metadata.namespace is not text: write it in quotes"},
		{"null for a namespace", "apiVersion: v1\nkind: ConfigMap\nmetadata: {namespace: , name: a}\n", "manifest, object 1: metadata.namespace is not text: write it in quotes"},
		{"no namespace", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n", "manifest, object 1: ConfigMap a needs a namespace: write it in the manifest or give the namespace argument"},
		{"empty namespace", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: ''}\n", "manifest, object 1: ConfigMap a needs a namespace: write it in the manifest or give the namespace argument"},
		{"namespace of what has none", "apiVersion: v1\nkind: Node\nmetadata: {name: a, namespace: shop}\n", `manifest, object 1: Node a does not live in a namespace, but the manifest names "shop"`},
		{"managedFields", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: shop, managedFields: []}\n", "manifest, object 1: metadata.managedFields cannot be applied: leave it out"},
		{"a path for a name", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ../../secrets/db, namespace: shop}\n", `name "../../secrets/db" `},
		{"a slash in a name", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a/b, namespace: shop}\n", `name "a/b" `},
		{"a percent sign in a name", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a%2fb, namespace: shop}\n", `name "a%2fb" `},
		{"dots for a name", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: .., namespace: shop}\n", `name ".." `},
		{"a path for a namespace", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: ../kube-system}\n", `namespace "../kube-system": `},
	} {
		t.Run(row.name, func(t *testing.T) {
			call, err := applied(t, row.manifest, "")
			var argument *ArgumentError
			if !errors.As(err, &argument) || !strings.HasPrefix(err.Error(), row.want) || len(call.Plan.Actions) > 0 {
				t.Errorf("got  %v\nwant %s", err, row.want)
			}
		})
	}

	t.Run("manifest and argument disagree", func(t *testing.T) {
		_, err := applied(t, cm, "prod")
		if want := `manifest, object 1: the manifest says namespace "shop" and the argument says "prod": make them agree`; err == nil || err.Error() != want {
			t.Errorf("got %v; want %s", err, want)
		}
	})
}

// A creation refuses what an apply does, but for generateName.
func TestCreateRefused(t *testing.T) {
	create := func(manifest string) (Call, error) {
		return tool(t, "create_resource").Plan(t.Context(), cluster(), map[string]any{"manifest": manifest})
	}
	object := func(rest string) string { return "apiVersion: v1\nkind: ConfigMap\n" + rest + "\n" }
	for _, row := range []struct{ name, manifest, want string }{
		{"nothing", "", "the manifest holds no object"},
		{"51 objects", strings.Repeat(cm+"\n---\n", 51), "the manifest holds more than 50 objects: give them in several calls"},
		{"status", object("metadata: {name: a, namespace: shop}\nstatus: {role: admin}"), "manifest, object 1: status cannot be created: leave it out"},
		{"managedFields", object("metadata: {name: a, namespace: shop, managedFields: []}"), "manifest, object 1: metadata.managedFields cannot be created: leave it out"},
		{"one object twice", cm + "\n---\n" + cm, "manifest, objects 1 and 2 are the same ConfigMap a: write it once"},
		{"no name", object("metadata: {namespace: shop}"), "manifest, object 1: metadata.name or metadata.generateName is needed"},
		{"no metadata", object(""), "manifest, object 1: metadata.name is needed"},
		{"empty names", object("metadata: {namespace: shop, name: '', generateName: ''}"), "manifest, object 1: metadata.name or metadata.generateName is needed"},
		{"both names", object("metadata: {namespace: shop, name: a, generateName: a-}"), "manifest, object 1: metadata has a name and a generateName: leave generateName out for an object of this name, or name for one whose name is made up"},
		{"a number for a name", object("metadata: {namespace: shop, name: 1}"), "manifest, object 1: metadata.name is not text: write it in quotes"},
		{"a number for a prefix", object("metadata: {namespace: shop, generateName: 1}"), "manifest, object 1: metadata.generateName is not text: write it in quotes"},
		{"a number for a prefix beside a name", object("metadata: {namespace: shop, name: a, generateName: [x]}"), "manifest, object 1: metadata.generateName is not text: write it in quotes"},
		{"a long prefix", object("metadata: {namespace: shop, generateName: " + strings.Repeat("x", 249) + "}"), "manifest, object 1: metadata.generateName has 249 bytes; at most 248 are taken"},
		{"a path for a prefix", object("metadata: {namespace: shop, generateName: ../a}"), `manifest, object 1: metadata.generateName "../a" may not contain '/'`},
		{"a percent sign in a prefix", object("metadata: {namespace: shop, generateName: a%2f}"), `manifest, object 1: metadata.generateName "a%2f" may not contain '%'`},
		{"a path for a name", object("metadata: {namespace: shop, name: ../a}"), `name "../a" `},
		{"no namespace", object("metadata: {generateName: a-}"), "manifest, object 1: ConfigMap needs a namespace: write it in the manifest or give the namespace argument"},
		{"a namespace of what has none", "{apiVersion: v1, kind: Node, metadata: {generateName: a-, namespace: shop}}", `manifest, object 1: Node does not live in a namespace, but the manifest names "shop"`},
		{"unknown kind", "{apiVersion: v1, kind: Gadget, metadata: {generateName: a-}}", `manifest, object 1: cluster local serves no kind "v1 Gadget"`},
	} {
		call, err := create(row.manifest)
		var argument *ArgumentError
		if !errors.As(err, &argument) || !strings.HasPrefix(err.Error(), row.want) || len(call.Plan.Actions) > 0 {
			t.Errorf("%s:\ngot  %v\nwant %s", row.name, err, row.want)
		}
	}
	call, err := create(object("metadata: {namespace: shop, generateName: " + strings.Repeat("x", 248) + "}"))
	if err != nil || call.Plan.Actions[0].Name != "" || call.Plan.Actions[0].String() != "create configmaps in namespace shop" {
		t.Errorf("the longest prefix: %+v, %v", call, err)
	}
}

// bomb is a manifest of a few hundred bytes that stands for 9^n items.
func bomb(n int) string {
	var b strings.Builder
	b.WriteString("a0: &a0 [x]\n")
	for i := range n {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*a%d,", i), 9))
	}
	return b.String()
}

// many repeats a format with the numbers from 0.
func many(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// One call may hold several objects in several shapes; each becomes an Action,
// in order, and names its namespace in its body too.
func TestManifestShapes(t *testing.T) {
	for _, row := range []struct{ name, manifest, namespace, want string }{
		{"one", cm, "", "apply configmaps shop/a"},
		{"one, as JSON", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"shop"}}`, "", "apply configmaps shop/a"},
		{"one, with escapes that YAML does not know", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"shop","annotations":{"a\/b":"\ud83d\ude00 & --- ..."}}}`, "", "apply configmaps shop/a"},
		{"the namespace from the argument", "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}", "prod", "apply configmaps prod/a"},
		{"the same in both", cm, "shop", "apply configmaps shop/a"},
		{"one without a namespace, though an argument is given", "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}", "shop", "apply namespaces shop"},
		{"documents, some empty", "---\n# first\n---\n" + cm + "\n---\n\n---\n{apiVersion: v1, kind: Node, metadata: {name: node-1}}\n---\n", "", "apply configmaps shop/a; apply nodes node-1"},
		{"separators with comments, and an end", cm + "\n--- # next\n{apiVersion: v1, kind: Node, metadata: {name: node-1}}\n...\n", "", "apply configmaps shop/a; apply nodes node-1"},
		{"Windows line ends", strings.ReplaceAll("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: b\n  namespace: shop\n---\n"+cm, "\n", "\r\n"), "", "apply configmaps shop/b; apply configmaps shop/a"},
		{"a List", "kind: List\nitems: [" + cm + ", {apiVersion: v1, kind: Node, metadata: {name: node-1}}]\n", "", "apply configmaps shop/a; apply nodes node-1"},
		{"a typed list", "apiVersion: v1\nkind: ConfigMapList\nitems: [" + cm + "]\n", "", "apply configmaps shop/a"},
		{"lists within lists", "{kind: List, items: [{kind: List, items: [{kind: List, items: [" + cm + "]}, {apiVersion: v1, kind: Node, metadata: {name: node-1}}]}]}", "", "apply configmaps shop/a; apply nodes node-1"},
		{"items of what is no list", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: shop}\nitems: [1]\n", "", "apply configmaps shop/a"},
		{"50 objects", many(50, "{apiVersion: v1, kind: ConfigMap, metadata: {name: c%d, namespace: shop}}\n---\n"), "", strings.TrimSuffix(many(50, "apply configmaps shop/c%d; "), "; ")},
		{"aliases", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: &n a, namespace: shop, labels: {app: *n}}\n", "", "apply configmaps shop/a"},
		{"certificates and dots in text", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: shop}\ndata:\n  crt: |\n    -----BEGIN CERTIFICATE-----\n    ...\n    -----END CERTIFICATE-----\n", "", "apply configmaps shop/a"},
		{"RBAC names", "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: 'system:a.b'}}", "", "apply clusterroles.rbac.authorization.k8s.io system:a.b"},
	} {
		t.Run(row.name, func(t *testing.T) {
			call, err := applied(t, row.manifest, row.namespace)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, a := range call.Plan.Actions {
				got = append(got, a.String())
				meta := a.Body.(map[string]any)["metadata"].(map[string]any)
				if namespace, _ := meta["namespace"].(string); namespace != a.Namespace || meta["name"] != a.Name {
					t.Errorf("%s has the body of %v", a, meta)
				}
				if a.Options.Force || a.Options.FieldManager != "countersign" || a.Options.PatchType != action.ApplyPatch {
					t.Errorf("%s with options %+v", a, a.Options)
				}
			}
			if strings.Join(got, "; ") != row.want {
				t.Errorf("got  %s\nwant %s", strings.Join(got, "; "), row.want)
			}
		})
	}
}

// Scalars are read as kubectl reads them, which is YAML 1.1: what an approver
// is shown is what they have become, not what was written.
func TestManifestScalars(t *testing.T) {
	for _, row := range []struct{ yaml, want string }{
		{"yes", "true"}, {"On", "true"}, {"y", "true"}, {"NO", "false"}, {"off", "false"}, {"n", "false"}, {"'yes'", `"yes"`}, {"!!str yes", `"yes"`},
		{"010", "8"}, {"0o10", "8"}, {"0x1F", "31"}, {"0b11", "3"}, {"1_000", "1000"}, {"+1", "1"}, {"08", "8"}, {"'010'", `"010"`},
		{"1e3", "1000"}, {"1.0", "1"}, {"1.5", "1.5"}, {"12:30", `"12:30"`}, {"2001-01-01", `"2001-01-01"`}, {"1.2.3", `"1.2.3"`},
		{"9007199254740993", "9007199254740993"}, {"-9223372036854775808", "-9223372036854775808"},
		{"~", "null"}, {"", "null"}, {"Null", "null"}, {"''", `""`},
		{"!!binary aGk=", `"hi"`}, {`"\u202e"`, "\"\u202e\""}, {"|\n    a\n    b", `"a\nb\n"`}, {">-\n    a\n    b", `"a b"`},
		{"{on: 1, 1: 2}", `{"1":2,"true":1}`},
		{"{<<: {a: 1}, b: 2}", `{"a":1,"b":2}`},
	} {
		call, err := applied(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: shop}\nv: "+row.yaml+"\n", "")
		if err != nil {
			t.Errorf("%s: %v", row.yaml, err)
			continue
		}
		got, err := action.Canonical(call.Plan.Actions[0].Body.(map[string]any)["v"])
		if err != nil || string(got) != row.want {
			t.Errorf("%s is read as %s, %v; want %s", row.yaml, got, err, row.want)
		}
	}
}

// JSON is JSON: no escape of it is lost, and its text stays text.
func TestJSONManifest(t *testing.T) {
	call, err := applied(t, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"shop"},"v":{"smile":"\ud83d\ude00","url":"http:\/\/x","yes":"yes","big":9007199254740993,"half":0.5,"null":null}}`, "")
	if err != nil {
		t.Fatal(err)
	}
	got, err := action.Canonical(call.Plan.Actions[0].Body.(map[string]any)["v"])
	if want := `{"big":9007199254740993,"half":0.5,"null":null,"smile":"😀","url":"http://x","yes":"yes"}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
}

// A manifest is refused with a text or read into bounded objects, and reading
// what was read changes nothing.
func FuzzManifest(f *testing.F) {
	for _, row := range goodCalls {
		var args struct{ Manifest string }
		if json.Unmarshal([]byte(row.args), &args) == nil && args.Manifest != "" {
			f.Add(args.Manifest)
		}
	}
	for _, seed := range []string{cm, bomb(3), "a: &a {b: 1}\nc: {<<: *a}\n", "kind: List\nitems: [{}]\n", "a: 1\n...\n---\n", "\r---\r", "? a\n: !!set {b}\n", "!!binary x", "a: 1e400", "\xef\xbb\xbfa: b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		objects, err := parseManifest(text)
		var argument *ArgumentError
		if err != nil {
			if !errors.As(err, &argument) || objects != nil {
				t.Fatalf("%v, %T: %v", objects, err, err)
			}
			return
		}
		if len(objects) == 0 || len(objects) > maxObjects {
			t.Fatalf("%d objects", len(objects))
		}
		for _, object := range objects {
			data, err := action.Canonical(object)
			if err != nil {
				t.Fatal(err)
			}
			if len(data) > maxManifest {
				continue // aliases; too large to be read again
			}
			again, err := parseManifest(string(data))
			if err != nil || len(again) != 1 || !reflect.DeepEqual(again[0], object) {
				t.Errorf("%s\nis read again as %v, %v", data, again, err)
			}
		}
	})
}
