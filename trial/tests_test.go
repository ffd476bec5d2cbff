package trial_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"countersign/trial"
)

func TestDecode(t *testing.T) {
	found, err := trial.Decode("a_test.yaml", []byte(header+`
- name: whole
  principal: {issuer: "https://idp", subject: s, username: u, groups: [a, b], client: c, onBehalfOf: o}
  cluster: prod
  call: {tool: scale_deployment, args: {namespace: shop, name: web, replicas: 5}}
  live: [`+web+`]
  result: [null]
  namespaces: {shop: {team: shop}, bare: {}}
  absent: [gone]
  now: 2026-02-01T08:00:00Z
  expect: {decision: allow, rules: [a], reason: r}
- name: short
  principal: {username: u}
  manifest: text
  expect: {decision: error}
---
apiVersion: countersign/v1alpha1
kind: PolicyTest
cases:
- {name: none, principal: {subject: s}, call: {tool: list_namespaces}, expect: {decision: deny, rules: []}}
`))
	if err != nil || len(found) != 3 {
		t.Fatalf("got %d cases, %v", len(found), err)
	}
	whole, short, none := found[0], found[1], found[2]
	p := whole.Call.Principal
	if p.Issuer != "https://idp" || p.Subject != "s" || p.Username != "u" || len(p.Groups) != 2 || p.Client != "c" || p.OnBehalfOf != "o" {
		t.Errorf("principal: got %+v", p)
	}
	if c := whole.Call; c.Cluster != "prod" || c.Tool != "scale_deployment" || string(c.Args) != `{"name":"web","namespace":"shop","replicas":5}` ||
		len(c.Live) != 1 || len(c.Results) != 1 || c.Results[0] != nil || c.Namespaces["shop"]["team"] != "shop" || c.Absent[0] != "gone" ||
		!c.Now.Equal(time.Date(2026, 2, 1, 8, 0, 0, 0, time.UTC)) || c.Resources[0].GroupResource() != "widgets.example.com" {
		t.Errorf("got %+v", c)
	}
	if whole.Line != 6 || whole.File != "a_test.yaml" || whole.Want.Decision != "allow" || whole.Want.Rules[0] != "a" || whole.Want.Reason != "r" {
		t.Errorf("got %+v", whole)
	}
	if c := short.Call; c.Principal.Subject != "u" || c.Tool != "apply_manifest" || string(c.Args) != `{"manifest":"text"}` || c.Now != trial.Noon || short.Want.Rules != nil {
		t.Errorf("got %+v", c)
	}
	if none.Call.Principal.Username != "s" || none.Call.Resources != nil || none.Want.Rules == nil || len(none.Want.Rules) != 0 {
		t.Errorf("got %+v", none)
	}
}

// Every mistake is reported, with its line and what is expected.
func TestDecodeMistakes(t *testing.T) {
	const good = "principal: {username: u}, call: {tool: t}, expect: {decision: deny}"
	for _, row := range []struct{ text, want string }{
		{"apiVersion: v2\nkind: Policy\ncases: []", `x_test.yaml:1: apiVersion is "v2"; "countersign/v1alpha1" is understood
x_test.yaml:2: kind is "Policy"; "PolicyTest" is understood
x_test.yaml:3: there is no case: write at least one under cases`},
		{header + "- {nam: a, " + good + "}\n- {name: b, live: {a: b}, " + good + "}", `x_test.yaml:5: unknown key "nam"
x_test.yaml:6: a mapping where a list is expected`},
		{header + "- {" + good + "}", "x_test.yaml:5: case 1 has no name"},
		{header + "- {name: a, " + good + "}\n- {name: a, " + good + "}", "x_test.yaml:6: case a: name is used already, at line 5"},
		{header + "- {name: a, call: {tool: t}, expect: {decision: deny}}", "x_test.yaml:5: case a: principal needs a username"},
		{header + "- {name: a, principal: {groups: [a]}, call: {tool: t}, expect: {decision: deny}}", "x_test.yaml:5: case a: principal needs a username"},
		{header + "- {name: a, principal: {username: u}, expect: {decision: deny}}", "x_test.yaml:5: case a: give either call or manifest"},
		{header + "- {name: a, manifest: m, " + good + "}", "x_test.yaml:5: case a: give either call or manifest"},
		{header + "- {name: a, principal: {username: u}, call: {args: {}}, expect: {decision: deny}}", "x_test.yaml:5: case a: call.tool is missing"},
		{header + "- {name: a, principal: {username: u}, call: {tool: t, args: [1]}, expect: {decision: deny}}", "x_test.yaml:5: case a: args is not an object"},
		{header + "- {name: a, principal: {username: u}, call: {tool: t, args: {a: 1, a: 2}}, expect: {decision: deny}}", `x_test.yaml:5: case a: args does not read: mapping key "a" already defined at line 5`},
		{header + "- {name: a, principal: {username: u}, call: {tool: t, args: {a: .inf}}, expect: {decision: deny}}", "x_test.yaml:5: case a: args holds what JSON does not know: keys are text, and numbers are finite"},
		{header + "- {name: a, " + good + ",\n   live: [{a: b},\n   1, null]}", "x_test.yaml:7: case a: object 2 of live is not an object\nx_test.yaml:7: case a: object 3 of live is not an object"},
		{header + "- {name: a, " + good + ", result: [text]}", "x_test.yaml:5: case a: object 1 of result is not an object"},
		{header + "- {name: a, " + good + ", now: noon}", `x_test.yaml:5: case a: now is "noon" where a time such as 2026-01-05T12:00:00Z is expected`},
		{header + "- {name: a, " + good + ", absent: [b], namespaces: {b: {}}}", "x_test.yaml:5: case a: namespace b is under namespaces and absent"},
		{header + "- {name: a, " + good + ", absent: [b], live: [{apiVersion: v1, kind: Namespace, metadata: {name: b}}]}", "x_test.yaml:5: case a: namespace b is under live, and under namespaces or absent as well"},
		{header + "- {name: a, principal: {username: u}, call: {tool: t}, expect: {decision: maybe}}", `x_test.yaml:5: case a: expect.decision is "maybe"; one of allow, require_approval, deny, error`},
		{header + "- {name: a, principal: {username: u}, call: {tool: t}}", `x_test.yaml:5: case a: expect.decision is ""; one of allow, require_approval, deny, error`},
		{header + "- {name: a, principal: {username: u}, call: {tool: t}, expect: {decision: deny, rules: a}}", "x_test.yaml:5: case a: expect.rules is a list of names of rules; [] is none"},
		{header + "- {name: a, principal: {username: u}, call: {tool: t}, expect: {decision: deny, rules: }}", "x_test.yaml:5: case a: expect.rules is a list of names of rules; [] is none"},
		{strings.Replace(header, "resource: widgets", "resource: Widgets", 1) + "- {name: a, " + good + "}", "x_test.yaml:3: a resource has a group, a version, a kind and a resource, which is its plural in lower case"},
	} {
		if _, err := trial.Decode("x_test.yaml", []byte(row.text)); err == nil || err.Error() != row.want {
			t.Errorf("%s\ngot  %v\nwant %s", row.text, err, row.want)
		}
	}
}

// A file that repeats a large object in each of many cases, or documents, is
// refused before it fills the memory; many cases can share one of usual size.
func TestObjectsAreBounded(t *testing.T) {
	file := func(size int, object string) string {
		large := "&large {apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: n}, data: {a: " + strings.Repeat("x", size) + "}}"
		var b strings.Builder
		b.WriteString(header)
		for n := range 1000 {
			if n > 0 {
				large = object
			}
			b.WriteString("- {name: c" + strings.Repeat("x", n) + ", principal: {username: u}, call: {tool: t}, expect: {decision: deny}, live: [" + large + "]}\n")
		}
		return b.String()
	}
	for _, object := range []string{"{<<: *large, b: 1}", "*large"} {
		if _, err := trial.Decode("x_test.yaml", []byte(file(100_000, object))); err == nil || !strings.Contains(err.Error(), "unfolds to more than") {
			t.Errorf("%s: got %.300v", object, err)
		}
		if found, err := trial.Decode("x_test.yaml", []byte(file(5_000, object))); err != nil || len(found[999].Call.Live) != 1 {
			t.Errorf("%s, of usual size: got %.300v", object, err)
		}
	}
	// A document that is short by itself, many times.
	one := "{apiVersion: v1, kind: A, a: &a [x,x,x,x,x,x,x,x], b: &b [*a,*a,*a,*a,*a,*a,*a,*a], c: &c [*b,*b,*b,*b,*b,*b,*b,*b], d: [*c,*c,*c,*c,*c,*c,*c,*c]}\n---\n"
	if _, err := trial.Objects("x.yaml", []byte(strings.Repeat(one, 5000))); err == nil || !strings.Contains(err.Error(), "unfolds to more than") {
		t.Errorf("documents: got %.300v", err)
	}
	if _, err := trial.Objects("x.yaml", []byte("{apiVersion: v1, kind: A, metadata: {}, a: &a {}, b: *a}")); err != nil {
		t.Error(err)
	}
}

// What is no regular file is refused, and not waited for.
func TestCasesAreFiles(t *testing.T) {
	dir := t.TempDir()
	for name, make := range map[string]func(string) error{
		"pipe_test.yaml": func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"zero_test.yaml": func(path string) error { return os.Symlink("/dev/zero", path) },
	} {
		path := filepath.Join(dir, name)
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if _, err := trial.Cases(os.DirFS(dir)); err == nil || err.Error() != "reading tests: "+name+" is not a file" {
			t.Errorf("got %v", err)
		}
		os.Remove(path)
	}
}

// Only *_test files hold cases, and mistakes of all of them are reported.
func TestCases(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	one := header + "- {name: a, principal: {username: u}, call: {tool: t}, expect: {decision: deny}}"
	found, err := trial.Cases(fstest.MapFS{
		"a_test.yaml": file(one), "b_test.yml": file(one), "policy.yaml": file("{"), ".c_test.yaml": file("{"), "d_test.txt": file("{"), "e_test.yaml/x": file("{"),
	})
	if err != nil || len(found) != 2 || found[1].File != "b_test.yml" {
		t.Errorf("got %v, %v", found, err)
	}
	_, err = trial.Cases(fstest.MapFS{"a_test.yaml": file("x: 1"), "b_test.yaml": file("y: 1"), "c_test.yaml": file(one)})
	if err == nil || err.Error() != "a_test.yaml:1: unknown key \"x\"\nb_test.yaml:1: unknown key \"y\"" {
		t.Errorf("got %v", err)
	}
	if found, err := trial.Cases(fstest.MapFS{}); err != nil || found != nil {
		t.Errorf("got %v, %v", found, err)
	}
	if _, err := trial.Cases(os.DirFS("nowhere")); err == nil {
		t.Error("a folder that is not there holds no cases without an error")
	}
}

// Whatever a file holds, it is read or refused, and its cases are decided.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(header + "- {name: a, principal: {username: u}, call: {tool: scale_deployment, args: {namespace: shop, name: web, replicas: 3}}, live: [" + web + "], expect: {decision: deny}}"))
	f.Add([]byte(header + "- {name: a, principal: {username: u}, manifest: '{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}, spec: {replicas: 1}}', live: [" + web + "], expect: {decision: deny}}"))
	f.Add([]byte(header + "- {name: a, principal: {username: u}, call: {tool: patch_resource, args: {kind: deploy, namespace: shop, name: web, type: json, patch: '[{op: remove, path: /spec}]'}}, live: [" + web + "], result: [null], namespaces: {a: {b: c}}, absent: [d], now: 2026-01-01T00:00:00Z, expect: {decision: deny, rules: [x]}}"))
	f.Add([]byte("a: &a [1]\nb: *a\n---\n<<: {}\n"))
	w := world(f, nil, "\n  rules:\n  - {name: all, effect: allow, match: {verbs: ['*']}, when: object != null || oldObject == null}\n")
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := trial.Decode("f_test.yaml", data)
		if err != nil {
			return
		}
		for _, c := range found {
			if a := w.Decide(context.Background(), c.Call); a.Decision == "" {
				t.Errorf("case %q is not decided: %+v", c.Name, a)
			}
			w.Explain(context.Background(), c.Call)
		}
	})
}
