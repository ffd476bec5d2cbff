package tools

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/validate/content"

	"countersign/action"
)

// Each text has to let a model correct the call: it names the argument.
func TestBadArguments(t *testing.T) {
	for _, row := range []struct{ tool, args, want string }{
		// Not arguments at all.
		{"list_namespaces", `[]`, "the arguments are not a JSON object: "},
		{"list_namespaces", `"x"`, "the arguments are not a JSON object: "},
		{"list_namespaces", `{`, "the arguments are not a JSON object: "},
		{"list_namespaces", `{} {}`, "the arguments are not a JSON object: "},
		// Names.
		{"list_namespaces", `{"selector":"a"}`, `unknown argument "selector"; list_namespaces takes continue, label_selector, limit`},
		{"scale_deployment", `{"Namespace":"shop","name":"web","replicas":1}`, `unknown argument "Namespace"; scale_deployment takes name, namespace, reason, replicas`},
		{"scale_deployment", `{"namespace":"shop","name":"web","replicas":1,"REPLICAS":2}`, `unknown argument "REPLICAS"; scale_deployment takes name, namespace, reason, replicas`},
		{"scale_deployment", `{"namespace":"shop","name":"web","replicas":1,"":2}`, `unknown argument ""; scale_deployment takes name, namespace, reason, replicas`},
		{"scale_deployment", `{"namespace":"shop","name":"web","replicas":1,"replicas":2}`, `duplicate field "replicas"`},
		{"scale_deployment", `{"namespace":"shop","name":"web","n\u0061me":"api","replicas":1}`, `duplicate field "name"`},
		{"scale_deployment", `{"namespace":"shop","namespace":"shop","name":"web","replicas":1}`, `duplicate field "namespace"`},
		{"get_operation", `{"op":{"a":1,"a":2}}`, `duplicate field "op.a"`},
		{"apply_manifest", `{"manifest":"x","approve":true}`, `unknown argument "approve"; apply_manifest takes force, manifest, namespace, reason`},
		{"create_resource", `{"manifest":"x","force":true}`, `unknown argument "force"; create_resource takes manifest, namespace, reason`},
		{"patch_resource", `{"body":{}}`, `unknown argument "body"; patch_resource takes kind, name, namespace, patch, reason, type`},
		// Missing.
		{"create_resource", `{}`, `argument manifest is missing`},
		{"patch_resource", `{"kind":"pods"}`, `argument name is missing; argument patch is missing`},
		{"scale_deployment", ``, `argument name is missing; argument namespace is missing; argument replicas is missing`},
		{"scale_deployment", `null`, `argument name is missing; argument namespace is missing; argument replicas is missing`},
		{"scale_deployment", `{"namespace":"shop","name":"web"}`, `argument replicas is missing`},
		// Types.
		{"scale_deployment", `{"namespace":"shop","name":"web","replicas":"3"}`, `argument replicas is text where a whole number is expected`},
		{"scale_deployment", `{"namespace":"shop","name":"web","replicas":3.5}`, `argument replicas is a number where a whole number is expected`},
		{"scale_deployment", `{"namespace":"shop","name":"web","replicas":null}`, `argument replicas is null where a whole number is expected`},
		{"scale_deployment", `{"namespace":null,"name":"web","replicas":3}`, `argument namespace is null where text is expected`},
		{"scale_deployment", `{"namespace":["shop"],"name":"web","replicas":3}`, `argument namespace is a list where text is expected`},
		{"scale_deployment", `{"namespace":"shop","name":{"is":"web"},"replicas":3}`, `argument name is an object where text is expected`},
		{"list_resources", `{"kind":"pods","all_namespaces":"true"}`, `argument all_namespaces is text where true or false is expected`},
		{"list_resources", `{"kind":"pods","all_namespaces":1}`, `argument all_namespaces is a number where true or false is expected`},
		{"get_pod_logs", `{"namespace":"shop","pod":"web","tail_lines":true}`, `argument tail_lines is true or false where a whole number is expected`},
		{"get_operation", `{"op":7}`, `argument op is a number where text is expected`},
		{"delete_resource", `{"kind":"pods","name":"web","namespace":"shop","grace_period_seconds":null}`, `argument grace_period_seconds is null where a whole number is expected`},
		{"patch_resource", `{"kind":"pods","name":"web","namespace":"shop","patch":{"spec":{}}}`, `argument patch is an object where text is expected`},
		{"patch_resource", `{"kind":"pods","name":"web","namespace":"shop","patch":"{}","type":null}`, `argument type is null where text is expected`},
		// Ranges.
		{"patch_resource", `{"kind":"pods","name":"web","namespace":"shop","patch":"{}","type":"apply"}`, `argument type is not one of [merge strategic json]`},
		{"patch_resource", `{"kind":"pods","name":"web","namespace":"shop","patch":"{}","type":""}`, `argument type is not one of [merge strategic json]`},
		{"patch_resource", `{"kind":"pods","name":"web","namespace":"shop","patch":"` + strings.Repeat("#", 4*maxManifest+1) + `"}`, `argument patch is longer than 4194304 characters`},
		{"scale_deployment", `{"namespace":"shop","name":"web","replicas":-1}`, `argument replicas is -1; from 0 to 10000 is expected`},
		{"scale_deployment", `{"namespace":"shop","name":"web","replicas":10001}`, `argument replicas is 10001; from 0 to 10000 is expected`},
		{"scale_deployment", `{"namespace":"shop","name":"web","replicas":99999999999999999999}`, `argument replicas is 100000000000000000000; from 0 to 10000 is expected`},
		{"list_resources", `{"kind":"pods","limit":0}`, `argument limit is 0; from 1 to 500 is expected`},
		{"list_resources", `{"kind":"pods","limit":501}`, `argument limit is 501; from 1 to 500 is expected`},
		{"get_pod_logs", `{"namespace":"shop","pod":"web","tail_lines":5001}`, `argument tail_lines is 5001; from 1 to 5000 is expected`},
		{"get_pod_logs", `{"namespace":"shop","pod":"web","since_seconds":604801}`, `argument since_seconds is 604801; from 1 to 604800 is expected`},
		{"wait_for_operation", `{"op":"x","seconds":46}`, `argument seconds is 46; from 1 to 45 is expected`},
		{"delete_resource", `{"kind":"pods","name":"web","namespace":"shop","grace_period_seconds":-1}`, `argument grace_period_seconds is -1; from 0 to 3600 is expected`},
		{"delete_resource", `{"kind":"pods","name":"web","namespace":"shop","propagation":"background"}`, `argument propagation is not one of [Background Foreground Orphan]`},
		{"scale_deployment", `{"namespace":"shop","name":"web","replicas":1,"reason":"` + strings.Repeat("ü", 501) + `"}`, `argument reason is longer than 500 characters`},
		{"list_resources", `{"kind":"pods","namespace":"shop","label_selector":"` + strings.Repeat("x", 4097) + `"}`, `argument label_selector is longer than 4096 characters`},
		{"get_operation", `{"op":"` + strings.Repeat("x", 4097) + `"}`, `argument op is longer than 4096 characters`},
		{"undo_rollout", `{"kind":"deployment","namespace":"shop","name":"web","to_revision":0}`, `argument to_revision is 0; at least 1 is expected`},
		{"get_rollout_history", `{"kind":"deployment","namespace":"shop","name":"web","revision":-1}`, `argument revision is -1; at least 1 is expected`},
		{"list_resources", `{"kind":"` + strings.Repeat("x", 4097) + `"}`, `argument kind is longer than 4096 characters`},
		{"set_image", `{"kind":"deployments.example.com","namespace":"shop","name":"web","image":"x"}`, `argument kind is not one of [deployment statefulset daemonset cronjob]`},
		// Several at once.
		{"scale_deployment", `{"name":7,"replicas":-1}`, `argument name is a number where text is expected; argument namespace is missing; argument replicas is -1; from 0 to 10000 is expected`},
		// Where it is, and what it is called.
		{"get_resource", `{"kind":"frobs","name":"x"}`, `cluster local serves no kind "frobs"`},
		{"get_resource", `{"kind":"pods","name":"x"}`, `pods live in namespaces: give namespace`},
		{"get_resource", `{"kind":"nodes","name":"x","namespace":"shop"}`, `nodes do not live in namespaces: leave namespace out`},
		{"get_resource", `{"kind":"pods","name":"","namespace":"shop"}`, `name is empty`},
		{"get_pod_logs", `{"namespace":"","pod":"x"}`, `pods live in namespaces: give namespace`},
		{"list_resources", `{"kind":"pods"}`, `pods live in namespaces: give namespace, or all_namespaces: true`},
		{"list_resources", `{"kind":"pods","namespace":"shop","all_namespaces":true}`, `give either namespace or all_namespaces, not both`},
		{"list_resources", `{"kind":"nodes","namespace":"shop"}`, `nodes do not live in namespaces: leave namespace out`},
		{"get_resource", `{"kind":"pods","name":"x","namespace":"Shop"}`, `namespace "Shop": `},
		{"get_resource", `{"kind":"pods","name":"x","namespace":"a/b"}`, `namespace "a/b": `},
		{"list_resources", `{"kind":"pods","namespace":"../kube-system"}`, `namespace "../kube-system": `},
		{"get_resource", `{"kind":"pods","name":"../secrets/db","namespace":"shop"}`, `name "../secrets/db" `},
		{"get_resource", `{"kind":"pods","name":"..","namespace":"shop"}`, `name ".." `},
		{"get_resource", `{"kind":"pods","name":"x%2fexec","namespace":"shop"}`, `name "x%2fexec" `},
		{"get_pod_logs", `{"namespace":"shop","pod":"web/exec"}`, `name "web/exec" `},
		{"get_pod_logs", `{"namespace":"shop","pod":"web","container":"a/b?c"}`, ``}, // a parameter, not a path
		{"patch_resource", `{"kind":"pods","name":"x","patch":"{a: 1}"}`, `pods live in namespaces: give namespace`},
		{"patch_resource", `{"kind":"nodes","name":"x","namespace":"shop","patch":"{a: 1}"}`, `nodes do not live in namespaces: leave namespace out`},
		{"patch_resource", `{"kind":"pods","name":"","namespace":"shop","patch":"{a: 1}"}`, `name is empty`},
		{"patch_resource", `{"kind":"pods","name":"x/status","namespace":"shop","patch":"{a: 1}"}`, `name "x/status" `},
		{"patch_resource", `{"kind":"frobs","name":"x","patch":"{a: 1}"}`, `cluster local serves no kind "frobs"`},
		{"delete_resource", `{"kind":"pods","name":"` + strings.Repeat("x", 254) + `","namespace":"shop"}`, `name has 254 bytes; at most 253 are taken`},
	} {
		call, err := plan(t, tool(t, row.tool), row.args)
		if row.want == "" {
			if err != nil {
				t.Errorf("%s %s: %v", row.tool, row.args, err)
			}
			continue
		}
		var argument *ArgumentError
		if !errors.As(err, &argument) || !strings.HasPrefix(err.Error(), row.want) || len(call.Plan.Actions) > 0 {
			t.Errorf("%s %.200s\ngot  %v\nwant %s", row.tool, row.args, err, row.want)
		}
		if strings.HasSuffix(row.want, "expected") && err != nil && err.Error() != row.want {
			t.Errorf("%s %.200s\ngot  %v\nwant %s", row.tool, row.args, err, row.want)
		}
	}
}

// A manifest given as an object instead of text is a mistake that models make:
// what it says must not come back in the error, which is recorded.
func TestBadArgumentsDoNotRepeatValues(t *testing.T) {
	long := strings.Repeat("hunter2", 100)
	for _, args := range []string{
		`{"manifest":{"kind":"Secret","stringData":{"password":"hunter2"}}}`,
		`{"manifest":["hunter2"]}`,
		`{"manifest":"x","reason":"` + long + `"}`,
		`{"manifest":"x","namespace":{"hunter2":1}}`,
		`{"manifest":"kind: Secret\nstringData: {~: hunter2}\n"}`,
		`{"manifest":"kind: Secret\nstringData: {password: hunter2}\n"}`,
		`{"manifest":"- hunter2\n"}`,
		`{"manifest":"hunter2"}`,
		`{"manifest":"kind: Secret\nstringData: {password: hunter2, password: hunter2}\n"}`,
		`{"manifest":"kind: Secret\nstringData: {password: \"hunter2}\n"}`,
		`{"manifest":"--- hunter2\n"}`,
	} {
		_, err := plan(t, tool(t, "apply_manifest"), args)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%.80s: %v", args, err)
		}
	}
	for _, patch := range []string{
		`hunter2`, `- hunter2`, `password: *hunter2`, `{a: "hunter2}`, `kind: hunter2`, `apiVersion: {a: hunter2}`, `{a: 1, a: hunter2}`, `{stringData: {pin: !!int hunter2}}`, `status: {a: hunter2}`,
	} {
		args, _ := json.Marshal(map[string]any{"kind": "secret", "name": "db", "namespace": "shop", "patch": patch})
		if _, err := plan(t, tool(t, "patch_resource"), string(args)); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", patch, err)
		}
	}
	for _, patch := range []string{
		`[hunter2]`, `[{hunter2: 1}]`, `[{op: hunter2}]`, `[{op: hunter2, path: /data/a, value: 1}]`, `[{op: add, path: hunter2, value: 1}]`, `[{op: copy, from: hunter2, path: /a}]`,
		`[{op: test, path: /data/a, value: hunter2}]`, `[{op: add, path: /status, value: hunter2}]`,
	} {
		args, _ := json.Marshal(map[string]any{"kind": "secret", "name": "db", "namespace": "shop", "type": "json", "patch": patch})
		if _, err := plan(t, tool(t, "patch_resource"), string(args)); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", patch, err)
		}
	}
	_, err := plan(t, tool(t, "apply_manifest"), `{"manifest":"x","`+long+`":1}`)
	if err == nil || len(err.Error()) > 250 {
		t.Errorf("an unknown argument's name is repeated whole: %v", err)
	}
}

func TestGoodArguments(t *testing.T) {
	for _, row := range []struct{ tool, args, want string }{
		{"list_namespaces", ``, `{}`},
		{"list_namespaces", `null`, `{}`},
		{"list_namespaces", " {\n} ", `{}`},
		{"scale_deployment", `{"namespace":"shop","name":"web","replicas":3.0}`, `{"name":"web","namespace":"shop","replicas":3}`},
		{"scale_deployment", `{"namespace":"shop","name":"web","replicas":3e0,"reason":"` + strings.Repeat("ü", 500) + `"}`, ``},
		{"delete_resource", `{"kind":"pods","name":"web","grace_period_seconds":0}`, `{"grace_period_seconds":0,"kind":"pods","name":"web"}`},
	} {
		got, err := tool(t, row.tool).Decode([]byte(row.args))
		data, _ := json.Marshal(got)
		if err != nil || row.want != "" && string(data) != row.want {
			t.Errorf("%s %.80s: %s, %v", row.tool, row.args, data, err)
		}
	}
}

// Whatever a caller sends, it is refused with an ArgumentError or it is a plan
// within the tool's scopes whose every name is one segment of a path.
func FuzzDecode(f *testing.F) {
	all := All([]string{"east", "west"})
	for _, row := range goodCalls {
		i := slices.IndexFunc(all, func(t *Tool) bool { return t.Name == row.tool })
		f.Add(byte(i), []byte(strings.Replace(strings.Replace(row.args, "{", `{"cluster":"east",`, 1), ",}", "}", 1)))
	}
	f.Add(byte(7), []byte(`{"namespace":"a","namespace":"b"}`))
	f.Add(byte(2), []byte(`{"kind":"pods","name":"../x","namespace":"\ud800"}`))
	f.Add(byte(4), []byte(`{"manifest":"a: &a [*a]"}`))
	f.Add(byte(5), []byte(`{"cluster":"east","manifest":"{apiVersion: v1, kind: Namespace, metadata: {generateName: a/b}}"}`))
	f.Add(byte(6), []byte(`{"cluster":"east","kind":"node","name":"a","type":"json","patch":"[{op: replace, path: x/status, value: 1}]"}`))
	f.Fuzz(func(t *testing.T, which byte, raw []byte) {
		tool := all[int(which)%len(all)]
		args, err := tool.Decode(raw)
		again, errAgain := tool.Decode(raw)
		if !reflect.DeepEqual(args, again) || (err == nil) != (errAgain == nil) {
			t.Fatalf("read two ways: %v, %v and %v, %v", args, err, again, errAgain)
		}
		var argument *ArgumentError
		if err != nil {
			if !errors.As(err, &argument) {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		call, err := tool.Plan(t.Context(), cluster(), args)
		if err != nil {
			if !errors.As(err, &argument) && !errors.Is(err, ErrNoCluster) {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		for _, a := range call.Plan.Actions {
			if !slices.ContainsFunc(tool.Scopes, func(s action.Scope) bool { return s.Covers(a) }) {
				t.Errorf("%s is outside the scopes of %s", a, tool.Name)
			}
			for _, segment := range []string{a.Name, a.Namespace} {
				if segment != "" && len(content.IsPathSegmentName(segment)) > 0 || strings.ContainsAny(segment, "/\x00") {
					t.Errorf("%q is not a segment of a path", segment)
				}
			}
			if a.Cluster != "east" && a.Cluster != "west" {
				t.Errorf("cluster %q", a.Cluster)
			}
		}
		if _, err := call.Plan.Digest(nil); err != nil {
			t.Error(err)
		}
	})
}
