package trial_test

import (
	"context"
	"strconv"
	"strings"
	"testing"

	"countersign/trial"
)

// preview asserts what a call would make of the live objects: as is a condition
// that must hold for the call to be allowed, with no guard in the way.
func preview(t *testing.T, name, as, text string) {
	t.Helper()
	w := world(t, nil, `
  guardsOff: ["guard:host-access", "guard:service-account-token-secrets", "guard:ownership"]
  rules:
  - name: as
    effect: allow
    match: {verbs: ["*"]}
    when: `+strconv.Quote(as)+`
`)
	c := cases(t, "\n- {name: a, principal: {username: bot}, "+text+", expect: {decision: allow}}\n")[0]
	if _, problem := w.Test(context.Background(), c); problem != "" {
		t.Errorf("%s: %s", name, problem)
	}
}

func TestEstimate(t *testing.T) {
	for _, row := range []struct{ name, as, text string }{
		{"a new object is the body", `oldObject == null && object.data.a == "1" && diff.size() == 1`,
			`manifest: "{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: shop}, data: {a: '1'}}"`},
		{"so is one that is created", `oldObject == null && object.metadata.name == "c"`,
			`call: {tool: create_resource, args: {manifest: "{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: shop}}"}}`},
		{"a generated name begins as asked", `object.metadata.name.startsWith("c-")`,
			`call: {tool: create_resource, args: {manifest: "{apiVersion: v1, kind: ConfigMap, metadata: {generateName: c-, namespace: shop}}"}}`},
		{"an apply merges lists by their key", `object.spec.template.spec.containers.map(c, c.image) == ["registry.example/web:2.0", "registry.example/side:1"]
      && diff.map(d, d.path) == ["/spec/template/spec/containers/0/image"]`,
			`manifest: "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}, spec: {template: {spec: {containers: [{name: web, image: 'registry.example/web:2.0'}]}}}}", live: [` + web + `]`},
		{"an apply of a kind of ours replaces them", `object.spec.list == [2]`,
			`manifest: "{apiVersion: example.com/v1, kind: Widget, metadata: {name: w, namespace: shop}, spec: {list: [2]}}", live: [{apiVersion: example.com/v1, kind: Widget, metadata: {name: w, namespace: shop}, spec: {list: [1, 3]}}]`},
		{"a strategic patch merges by key", `object.spec.template.spec.containers.size() == 2 && object.spec.template.spec.containers[1].image == "x"`,
			`call: {tool: patch_resource, args: {kind: deploy, namespace: shop, name: web, type: strategic, patch: '{"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "x"}]}}}}'}}, live: [` + web + `]`},
		{"a merge patch replaces lists, and null removes", `object.spec.template.spec.containers.size() == 1 && !has(object.spec.replicas)`,
			`call: {tool: patch_resource, args: {kind: deploy, namespace: shop, name: web, patch: '{"spec": {"replicas": null, "template": {"spec": {"containers": [{"name": "side", "image": "x"}]}}}}'}}, live: [` + web + `]`},
		{"a JSON patch does as it says", `diff.size() == 2 && diff[1].path == "/spec/template/spec/containers/1" && diff[1].op == "remove"`,
			`call: {tool: patch_resource, args: {kind: deploy, namespace: shop, name: web, type: json, patch: '[{"op": "replace", "path": "/spec/replicas", "value": 4}, {"op": "remove", "path": "/spec/template/spec/containers/1"}]'}}, live: [` + web + `]`},
		{"a scale is of a Scale", `oldObject.kind == "Scale" && oldObject.spec.replicas == 2 && object.spec.replicas == 7 && diff.map(d, d.path) == ["/spec/replicas"]`,
			`call: {tool: scale_deployment, args: {namespace: shop, name: web, replicas: 7}}, live: [` + web + `]`},
		{"a workload that says nothing has one replica", `oldObject.spec.replicas == 1`,
			`call: {tool: scale_deployment, args: {namespace: shop, name: w, replicas: 7}}, live: [{apiVersion: apps/v1, kind: Deployment, metadata: {name: w, namespace: shop}}]`},
		{"a deletion leaves nothing", `object == null && oldObject.metadata.uid == "u1" && "object deleted" in risks`,
			`call: {tool: delete_resource, args: {kind: deploy, namespace: shop, name: web}}, live: [` + web + `]`},
		{"a Secret's texts are where the API server keeps them", `object.data == {"a": "MQ==", "b": "Mg=="} && !has(object.stringData)`,
			`manifest: "{apiVersion: v1, kind: Secret, metadata: {name: s, namespace: shop}, stringData: {b: '2'}}", live: [{apiVersion: v1, kind: Secret, metadata: {name: s, namespace: shop}, data: {a: "MQ=="}}]`},
		{"a given result is taken instead", `object.spec.replicas == 3 && object.spec.paused && oldObject.spec.replicas == 2`,
			`call: {tool: patch_resource, args: {kind: deploy, namespace: shop, name: web, patch: '{"spec": {"replicas": 7}}'}}, live: [` + web + `], result: [{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}, spec: {replicas: 3, paused: true}}]`},
		{"and alone, where the live object does not matter", `object.spec.replicas == 0`,
			`call: {tool: scale_deployment, args: {namespace: shop, name: web, replicas: 0}}, result: [{apiVersion: autoscaling/v1, kind: Scale, metadata: {name: web, namespace: shop}, spec: {}}]`},
		{"one result of several is estimated", `action.name == "a" ? object.data.x == "1" : object.data.y == "2"`,
			`manifest: "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: shop}, data: {x: '1'}}, {apiVersion: v1, kind: ConfigMap, metadata: {name: b, namespace: shop}}]}", result: [null, {apiVersion: v1, kind: ConfigMap, metadata: {name: b, namespace: shop}, data: {y: "2"}}]`},
		{"times and numbers are what Kubernetes has", `oldObject.metadata.annotations.day == "2026-01-05" && oldObject.spec.n == 3 && oldObject.spec.f == 1.5`,
			`call: {tool: delete_resource, args: {kind: widget, namespace: shop, name: w}}, live: [{apiVersion: example.com/v1, kind: Widget, metadata: {name: w, namespace: shop, annotations: {day: 2026-01-05}}, spec: {n: 3, f: 1.5}}]`},
		{"a Namespace is there unless it is not", `oldObject.metadata.labels["kubernetes.io/metadata.name"] == "shop" && namespaceObject.status.phase == "Active"`,
			`call: {tool: delete_resource, args: {kind: ns, name: shop}}`},
	} {
		preview(t, row.name, row.as, row.text)
	}
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// What the API server would refuse, and what cannot be estimated, is an error
// with what to do about it.
func TestNoEstimate(t *testing.T) {
	test(t, world(t, nil, `
  guardsOff: ["guard:host-access"]
  rules:
  - {name: all, effect: allow, match: {verbs: ["*"]}, when: action.verb != "nothing" && (object == null || object != null)}
`), `
- {name: a creation of what is there, principal: {username: bot}, call: {tool: create_resource, args: {manifest: '`+oneLine(web)+`'}}, live: [`+web+`], expect: {decision: error, reason: it is there already}}
- {name: a patch of what is not, principal: {username: bot}, call: {tool: patch_resource, args: {kind: deploy, namespace: shop, name: web, patch: "{spec: {replicas: 1}}"}}, expect: {decision: error, reason: give the object under live}}
- {name: a deletion of what is not, principal: {username: bot}, call: {tool: delete_resource, args: {kind: deploy, namespace: shop, name: web}}, result: [`+web+`], expect: {decision: error, reason: give the object under live}}
- {name: a strategic patch of a kind of ours, principal: {username: bot}, call: {tool: patch_resource, args: {kind: widget, namespace: shop, name: w, type: strategic, patch: "{spec: {a: 1}}"}}, live: [{apiVersion: example.com/v1, kind: Widget, metadata: {name: w, namespace: shop}}], expect: {decision: error, reason: custom kinds take no strategic merge patch}}
- {name: a JSON patch whose test fails, principal: {username: bot}, call: {tool: patch_resource, args: {kind: deploy, namespace: shop, name: web, type: json, patch: '[{"op": "test", "path": "/spec/replicas", "value": 4}, {"op": "remove", "path": "/spec/replicas"}]'}}, live: [`+web+`], expect: {decision: error, reason: "estimating"}}
- {name: too many results, principal: {username: bot}, call: {tool: scale_deployment, args: {namespace: shop, name: web, replicas: 0}}, live: [`+web+`], result: [null, null], expect: {decision: error, reason: give one for each}}
`)
}

// Few operations must not make an object that fills the memory.
func TestCopiesAreBounded(t *testing.T) {
	patch := `[{"op": "add", "path": "/spec/a", "value": "0123456789012345678901234567890123456789"}`
	for range 25 {
		patch += `, {"op": "add", "path": "/spec/b", "value": {}}, {"op": "copy", "from": "/spec/a", "path": "/spec/b/a"}, {"op": "move", "from": "/spec/a", "path": "/spec/b/b"}, {"op": "move", "from": "/spec/b", "path": "/spec/a"}`
	}
	test(t, world(t, nil, `
  guardsOff: ["guard:host-access"]
  rules:
  - {name: all, effect: allow, match: {verbs: ["*"]}, when: object != null}
`), `
- {name: a, principal: {username: bot}, call: {tool: patch_resource, args: {kind: deploy, namespace: shop, name: web, type: json, patch: '`+patch+`]'}}, live: [`+web+`], expect: {decision: error, reason: copy}}
`)
}

// Cases share an object that stands behind an alias, and none changes it.
func TestSharedObjects(t *testing.T) {
	found := cases(t, `
- name: one
  principal: {username: bot}
  call: {tool: delete_resource, args: {kind: configmap, namespace: shop, name: c}}
  live: [&c {apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: shop, managedFields: [{manager: x}]}, data: {a: "1"}}]
  expect: {decision: allow}
- name: two
  principal: {username: bot}
  manifest: "{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: shop}, data: {a: '2'}}"
  live: [*c]
  expect: {decision: allow}
- name: three
  principal: {username: bot}
  call: {tool: delete_resource, args: {kind: configmap, namespace: shop, name: c}}
  live: [{<<: *c, data: {b: "3"}}]
  expect: {decision: allow}
`)
	w := world(t, nil, `
  rules:
  - {name: all, effect: allow, match: {verbs: ["*"]}, when: "!has(oldObject.metadata.managedFields) && (object == null || object.data.a == '2')"}
`)
	for range 2 {
		for _, c := range found {
			if _, problem := w.Test(context.Background(), c); problem != "" {
				t.Errorf("%s: %s", c.Name, problem)
			}
		}
	}
	if found[0].Call.Live[0]["metadata"].(map[string]any)["managedFields"] == nil || found[2].Call.Live[0]["data"].(map[string]any)["b"] != "3" {
		t.Error("a case's object was changed")
	}
}

func TestObjects(t *testing.T) {
	all, err := trial.Objects("f.yaml", []byte("apiVersion: v1\nkind: List\nitems: [{kind: A}, {kind: B}]\n---\n{kind: C, items: [1]}\n"))
	if err != nil || len(all) != 3 || all[1]["kind"] != "B" || all[2]["kind"] != "C" {
		t.Errorf("got %v, %v", all, err)
	}
	if _, err := trial.Objects("f.yaml", []byte("[1]\n---\n{kind: PodList, items: [1]}\n")); err == nil ||
		err.Error() != "f.yaml:1: document 1 is not an object\nf.yaml:3: item 1 is not an object" {
		t.Errorf("got %v", err)
	}
}
