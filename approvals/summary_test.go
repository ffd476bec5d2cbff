package approvals

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode"

	"countersign/action"
)

// changing is an operation with one Action, or several, each with its differences.
func changing(diffs ...[]action.Change) Operation {
	op := Operation{Diffs: diffs}
	for i := range diffs {
		op.Plan.Actions = append(op.Plan.Actions, action.Action{
			Cluster: "prod", Verb: action.Patch, Namespace: "shop", Name: fmt.Sprint("web-", i),
			Resource: action.Resource{Group: "apps", Version: "v1", Resource: "deployments", Namespaced: true},
		})
	}
	return op
}

type object = map[string]any

// Each row is one change and the lines of its summary, without the one that counts.
func TestSummaryOfOneField(t *testing.T) {
	pod := func(fields object) action.Change {
		return action.Change{Op: "add", New: object{"kind": "Pod", "spec": fields}}
	}
	container := func(fields object) action.Change { return pod(object{"containers": []any{fields}}) }
	at := func(op, path string, old, now any) action.Change {
		return action.Change{Op: op, Path: path, Old: old, New: now}
	}
	for _, row := range []struct {
		name   string
		change action.Change
		want   []string
	}{
		{"privileged", container(object{"securityContext": object{"privileged": true}}), []string{"/spec/containers/0/securityContext/privileged: true"}},
		{"not privileged", container(object{"securityContext": object{"privileged": false, "runAsNonRoot": true, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
			"capabilities": object{"drop": []any{"ALL"}}, "seccompProfile": object{"type": "RuntimeDefault"}, "runAsUser": int64(1000)}}), nil},
		{"privileged, in another case", at("add", "/spec/x", nil, object{"Privileged": true}), []string{"/spec/x/Privileged: true"}},
		{"privileged, but masked", at("replace", "/spec/privileged", false, "***"), []string{`/spec/privileged: false -> "***"`}},
		{"no longer privileged", at("replace", "/spec/privileged", true, false), nil},
		{"user 0", at("replace", "/spec/securityContext/runAsUser", int64(1000), float64(0)), []string{"/spec/securityContext/runAsUser: 1000 -> 0"}},
		{"non-root no longer demanded", at("remove", "/spec/securityContext/runAsNonRoot", true, nil), []string{"/spec/securityContext/runAsNonRoot: removed, was true"}},
		{"no securityContext left", at("remove", "/spec/securityContext", object{"runAsNonRoot": true, "fsGroup": int64(5)}, nil), []string{"/spec/securityContext/runAsNonRoot: removed, was true"}},
		{"host", pod(object{"hostNetwork": true, "hostPID": true, "hostIPC": true}), []string{"/spec/hostIPC: true", "/spec/hostNetwork: true", "/spec/hostPID: true"}},
		{"capability", at("add", "/spec/containers/0/securityContext/capabilities/add", nil, []any{"SYS_ADMIN"}), []string{`.../0/securityContext/capabilities/add: ["SYS_ADMIN"]`}},
		{"one more capability", at("add", "/spec/containers/0/securityContext/capabilities/add/1", nil, "SYS_ADMIN"), []string{`.../securityContext/capabilities/add/1: "SYS_ADMIN"`}},
		{"capability no longer dropped", at("remove", "/spec/securityContext/capabilities/drop", []any{"ALL"}, nil), []string{`/spec/securityContext/capabilities/drop: removed, was ["ALL"]`}},
		{"hostPath", pod(object{"volumes": []any{object{"name": "a", "emptyDir": object{}}, object{"name": "b", "hostPath": object{"path": "/"}}}}), []string{`/spec/volumes/1/hostPath: {path: "/"}`}},
		{"volume of a secret", at("add", "/spec/volumes/3", nil, object{"name": "b", "secret": object{"secretName": "db"}}), []string{`/spec/volumes/3: {name: "b", secret: {secretName: "db"}}`}},
		{"account", pod(object{"serviceAccountName": "root", "serviceAccount": "root"}), []string{`/spec/serviceAccount: "root" (and in 1 more place)`}},
		{"image", at("replace", "/spec/containers/0/image", "a:1", "a:2"), []string{`/spec/containers/0/image: "a:1" -> "a:2"`}},
		{"command", at("add", "/exec", nil, object{"command": []any{"rm", "-rf", "/"}, "container": "web"}), []string{`/exec/command: ["rm", "-rf", "/"]`}},
		{"one argument", at("replace", "/spec/containers/0/args/2", "a", "b"), []string{`/spec/containers/0/args/2: "a" -> "b"`}},
		{"env of a secret", container(object{"env": []any{object{"name": "P", "valueFrom": object{"secretKeyRef": object{"name": "db", "key": "p"}}}}}), []string{`.../env/0/valueFrom/secretKeyRef: {key: "p", name: "db"}`}},
		{"env", container(object{"env": []any{object{"name": "P", "value": "x"}}}), nil},
		{"rules", at("add", "/rules/1", nil, object{"apiGroups": []any{""}, "resources": []any{"secrets"}, "verbs": []any{"*"}}), []string{`/rules/1: {apiGroups: [""], resources: ["secrets"], verbs: ["*"]}`}},
		{"one more verb", at("add", "/rules/1/verbs/0", nil, "delete"), []string{`/rules/1/verbs/0: "delete"`}},
		{"binding", at("add", "", nil, object{"roleRef": object{"name": "cluster-admin"}, "subjects": []any{object{"name": "x"}}}), []string{`/roleRef: {name: "cluster-admin"}`, `/subjects/0: {name: "x"}`}},
		{"webhook gone", at("remove", "/webhooks/0", object{"name": "guard"}, nil), []string{`/webhooks/0: removed, was {name: "guard"}`}},
		{"pod security label", at("replace", "/metadata/labels/pod-security.kubernetes.io~1enforce", "restricted", "privileged"), []string{`/metadata/labels/pod-security.kubernetes.io~1enforce: "restricted" -> "privileged"`}},
		{"to zero", at("replace", "/spec/replicas", int64(3), int64(0)), []string{"/spec/replicas: 3 -> 0"}},
		{"to five", at("replace", "/spec/replicas", int64(3), int64(5)), nil},
		{"finalizers", at("remove", "/metadata/finalizers", []any{"a"}, nil), []string{`/metadata/finalizers: removed, was ["a"]`}},
		{"owner", at("add", "/metadata/ownerReferences", nil, []any{object{"name": "x"}}), []string{`/metadata/ownerReferences/0: {name: "x"}`}},
		{"selector", at("replace", "/spec/selector/app", "a", "b"), []string{`/spec/selector/app: "a" -> "b"`}},
		{"selector of something new", at("add", "", nil, object{"spec": object{"selector": object{"app": "b"}}}), nil},
		{"opened", at("replace", "/spec/type", "ClusterIP", "LoadBalancer"), []string{`/spec/type: "ClusterIP" -> "LoadBalancer"`}},
		{"a list in place of a value", at("replace", "/spec/x", "a", []any{object{"privileged": true}}), []string{"/spec/x/0/privileged: true"}},
		{"a value with a danger in its name only", at("add", "/data", nil, object{"a: privileged": "true"}), nil},
		{"a long value", at("replace", "/spec/image", "a", strings.Repeat("x", 999)), []string{`/spec/image: "a" -> "` + strings.Repeat("x", 60) + `"... (999 characters)`}},
		{"behind a long value", at("add", "/spec", nil, object{"args": []any{strings.Repeat("x", 99_999), "b"}, "privileged": true}),
			[]string{"/spec/privileged: true", `/spec/args: ["` + strings.Repeat("x", 60) + `"... (99999 characters), "b"]`}},
		{"nothing to note", at("replace", "/data/a", "1", "2"), nil},
	} {
		got := Summary(changing([]action.Change{row.change}))
		if got = got[:len(got)-1]; !slices.Equal(got, row.want) {
			t.Errorf("%s:\n%s\nwant\n%s", row.name, strings.Join(got, "\n"), strings.Join(row.want, "\n"))
		}
	}
}

func TestSummaryCounts(t *testing.T) {
	a := action.Change{Op: "replace", Path: "/data/a", Old: "1", New: "2"}
	made := action.Change{Op: "add", New: object{"kind": "Role", "metadata": object{"name": "x"}, "rules": []any{}}}
	gone := action.Change{Op: "remove", Old: object{"kind": "Role"}}
	for _, row := range []struct {
		op   Operation
		want string
	}{
		{changing(nil), "nothing would change"},
		{changing([]action.Change{a}), "1 field changes"},
		{changing([]action.Change{a, a}, []action.Change{a}), "3 fields change in 2 objects"},
		{changing([]action.Change{a}, nil, nil), "1 field changes in 1 object, 2 objects stay as they are"},
		{changing([]action.Change{made}), "3 fields change, 1 object is new"},
		{changing([]action.Change{gone}), "1 object is removed"},
		{changing([]action.Change{a}, []action.Change{made}, []action.Change{gone}, []action.Change{gone}), "4 fields change in 2 objects, 1 object is new, 2 objects are removed"},
	} {
		got := Summary(row.op)
		if got[len(got)-1] != row.want {
			t.Errorf("got %s; want %s", got[len(got)-1], row.want)
		}
	}
	if got := Summary(Operation{}); len(got) != 0 {
		t.Errorf("without differences: %q", got)
	}
	if got := Summary(Operation{Risks: []string{"image changed", "a\u202eb\n"}}); !slices.Equal(got, []string{`Risks: image changed, a\u{202E}b\u{A}`}) {
		t.Errorf("risks: %q", got)
	}
}

// However much there is, the worst comes first and nothing of one name drives it out.
func TestSummaryOfMuch(t *testing.T) {
	var containers []any
	for i := range 2000 {
		containers = append(containers, object{"image": fmt.Sprint("img:", i), "name": strings.Repeat("n", 100), "hostPort": int64(i + 1)})
	}
	containers = append(containers, object{"securityContext": object{"privileged": true}})
	op := changing(
		[]action.Change{{Op: "add", Path: "/spec/containers", New: containers}},
		[]action.Change{{Op: "add", New: object{"rules": []any{object{"verbs": []any{"get"}}}}}},
	)
	op.Risks = []string{"privilege gained"}
	got := Summary(op)
	if want := []string{
		"Risks: privilege gained",
		"1. shop/web-0 /spec/containers/0/hostPort: 1",
		"1. shop/web-0 /spec/containers/1/hostPort: 2",
		"1. shop/web-0 /spec/containers/2/hostPort: 3",
		"1. shop/web-0 /spec/containers/3/hostPort: 4",
		"1. shop/web-0 /spec/containers/2000/securityContext/privileged: true",
		`2. shop/web-1 /rules/0: {verbs: ["get"]}`,
		`1. shop/web-0 /spec/containers/0/image: "img:0"`,
		`1. shop/web-0 /spec/containers/1/image: "img:1"`,
		`1. shop/web-0 /spec/containers/2/image: "img:2"`,
		`1. shop/web-0 /spec/containers/3/image: "img:3"`,
		"and 3992 more: hostport, image",
		"6002 fields change in 2 objects, 1 object is new",
	}; !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, line := range got {
		if n := len([]rune(line)); n > mostLine+40 {
			t.Errorf("a line of %d characters", n)
		}
	}

	// The same in every place is one line.
	for i := range containers {
		containers[i] = object{"privileged": true}
	}
	if got := Summary(changing([]action.Change{{Op: "add", Path: "/x", New: containers}})); got[0] != "/x/0/privileged: true (and in 2000 more places)" || len(got) != 2 {
		t.Errorf("%q", got)
	}
}

func TestSummaryIsVisible(t *testing.T) {
	hostile := "x\u202e\n\x1b[31m\u200b"
	op := changing([]action.Change{
		{Op: "add", Path: "/spec/" + hostile, New: object{"image": hostile, hostile: object{"privileged": hostile}}},
		{Op: "add", Path: "/metadata/labels/pod-security.kubernetes.io~1" + hostile, New: hostile},
	}, nil)
	op.Plan.Actions[0].Name = hostile
	for _, line := range append(Summary(op), append(Outline(op, 5), Outline(changing(op.Diffs[0]), 5)...)...) {
		if i := strings.IndexFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%q", line)
		}
	}
}

// A kind's description names fields without having them.
func TestSummaryOfDescriptions(t *testing.T) {
	described := action.Change{Op: "add", New: object{"spec": object{"versions": []any{object{"schema": object{"openAPIV3Schema": object{"properties": object{"image": object{"type": "string"}}}}}}}}}
	op := changing([]action.Change{described})
	if got := Summary(op); len(got) != 2 {
		t.Errorf("in another kind it could be anything: %q", got)
	}
	op.Plan.Actions[0].Resource = action.Resource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	if got := Summary(op); len(got) != 1 {
		t.Errorf("%q", got)
	}
}

func TestOutline(t *testing.T) {
	one := changing([]action.Change{{Op: "replace", Path: "/a", Old: "1", New: "2"}, {Op: "add", Path: "/b", New: object{"c": "x", "d": "y", "e": "z"}}})
	if got, want := Outline(one, 3), []string{`/a: "1" -> "2"`, `/b/c: "x"`, `/b/d: "y"`, "and 1 more"}; !slices.Equal(got, want) {
		t.Errorf("%q; want %q", got, want)
	}
	three := changing(one.Diffs[0], []action.Change{{Op: "remove", Old: object{}}}, nil)
	if got, want := Outline(three, 2), []string{
		"1. patch deployments.apps shop/web-0, cluster prod: 4 fields change",
		"2. patch deployments.apps shop/web-1, cluster prod: 1 object is removed",
		"and 1 more",
	}; !slices.Equal(got, want) {
		t.Errorf("%q; want %q", got, want)
	}
}

func FuzzSummary(f *testing.F) {
	f.Add("/spec/containers/0/image", "a", true)
	f.Add("", "\u202e", false)
	f.Add("//~", strings.Repeat("x", 500), true)
	f.Fuzz(func(t *testing.T, path, text string, deep bool) {
		var v any = text
		if deep {
			v = object{"privileged": v, text: []any{v, object{"rules": []any{v, object{"verbs": v}}}}}
		}
		for _, how := range []string{"add", "remove", "replace"} {
			op := changing([]action.Change{{Op: how, Path: path, Old: v, New: v}}, nil)
			for _, line := range append(Summary(op), Outline(op, 3)...) {
				if len([]rune(line)) > mostLine+80 || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Errorf("%q", line)
				}
			}
		}
	})
}
