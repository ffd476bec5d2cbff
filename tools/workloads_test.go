package tools

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"countersign/action"
)

// heldKubectl stands for kubectl's code: it goes back to an image that says which
// revision it was asked for, finds the pods of evictable, and takes words as an error.
type heldKubectl struct {
	Kubectl
	h *holding
}

// kubectlRefuses and kubectlHistory are among a cluster's answers what kubectl's
// code says instead of working, and its rollout history.
const (
	kubectlRefuses = "kubectl refuses"
	kubectlHistory = "kubectl rollout history"
	kubectlPods    = "kubectl pods"
)

func (k heldKubectl) Undo(a action.Action, _ map[string]any, revision int64) (action.Action, error) {
	if words, refused := k.h.answers[kubectlRefuses]; refused {
		return action.Action{}, BadArgument("%s", words)
	}
	a.Verb, a.Options = action.Patch, action.Options{PatchType: action.JSONPatch, FieldManager: FieldManager}
	a.Body = []any{map[string]any{"op": "replace", "path": "/spec/template", "value": map[string]any{"revision": revision}}}
	return a, nil
}

func (k heldKubectl) RolloutHistory(_ action.Action, revision int64) (string, error) {
	if words, refused := k.h.answers[kubectlRefuses]; refused && revision != 0 {
		return "", BadArgument("%s", words)
	}
	return k.h.answers[kubectlHistory], nil
}

func (k heldKubectl) Evictable(node string, options DrainOptions) ([]PodRef, error) {
	if words, refused := k.h.answers[kubectlRefuses]; refused {
		return nil, BadArgument("%s", words)
	}
	k.h.asked = append(k.h.asked, fmt.Sprintf("drain %s %+v", node, options))
	found := []PodRef{{"shop", "web-2"}, {"pay", "db-0"}}
	if names, given := k.h.answers[kubectlPods]; given {
		found = nil
		for _, name := range strings.Fields(names) {
			found = append(found, PodRef{"shop", name})
		}
	}
	return found, nil
}

// refusal is a call that cannot be planned, and how the answer begins.
type refusal struct {
	name, tool, args string
	answers          map[string]string // beside what is in goodCalls' cluster
	want             string
}

func refused(t *testing.T, rows []refusal) {
	t.Helper()
	for _, row := range rows {
		t.Run(row.tool+"/"+row.name, func(t *testing.T) {
			answers := map[string]string{}
			for _, from := range []map[string]string{inCluster, row.answers} {
				for key, answer := range from {
					answers[key] = answer
				}
			}
			call, err := planIn(t, tool(t, row.tool), answers, row.args)
			var argument *ArgumentError
			if !errors.As(err, &argument) || !strings.HasPrefix(err.Error(), row.want) || len(call.Plan.Actions) > 0 {
				t.Errorf("got  %v\nwant %s", err, row.want)
			}
		})
	}
}

const (
	paused     = `{"kind":"Deployment","metadata":{"name":"web","namespace":"shop"},"spec":{"paused":true}}`
	containers = `{"spec":{"template":{"spec":{"initContainers":[{"name":"fetch"}],"containers":[{"name":"web"},{"name":"side"}]}}}}`
)

func TestWorkloadsRefused(t *testing.T) {
	const badImage = "image is empty or holds white space or characters outside ASCII: write it as registry.example/name:tag"
	web := func(object string) map[string]string {
		return map[string]string{"get deployments.apps shop/web": object}
	}
	refused(t, []refusal{
		{name: "too many", tool: "scale_statefulset", args: `{"namespace":"shop","name":"db","replicas":10001}`, want: "argument replicas is 10001; from 0 to 10000 is expected"},
		{name: "no name", tool: "scale_statefulset", args: `{"namespace":"shop","name":"","replicas":1}`, want: "name is empty"},
		{name: "no namespace", tool: "scale_statefulset", args: `{"namespace":"","name":"db","replicas":1}`, want: "statefulsets.apps live in namespaces: give namespace"},
		{name: "a name that is a path", tool: "pause_rollout", args: `{"namespace":"shop","name":"../web"}`, want: `name "../web" `},

		{name: "a kind without rollouts", tool: "restart_rollout", args: `{"kind":"job","namespace":"shop","name":"web"}`, want: "argument kind is not one of [deployment statefulset daemonset]"},
		{name: "paused", tool: "restart_rollout", args: `{"kind":"deployment","namespace":"shop","name":"web"}`, answers: web(paused), want: "Deployment web is paused: resume_rollout first"},
		{name: "no name", tool: "restart_rollout", args: `{"kind":"deployment","namespace":"shop","name":""}`, want: "name is empty"},

		{name: "paused", tool: "undo_rollout", args: `{"kind":"deployment","namespace":"shop","name":"web"}`, answers: web(paused), want: "Deployment web is paused: resume_rollout first"},
		{name: "revision 0", tool: "undo_rollout", args: `{"kind":"deployment","namespace":"shop","name":"web","to_revision":0}`, want: "argument to_revision is 0; at least 1 is expected"},
		{name: "a revision that is gone", tool: "undo_rollout", args: `{"kind":"deployment","namespace":"shop","name":"web","to_revision":1}`,
			answers: map[string]string{
				kubectlRefuses: "unable to find specified revision 1 in history",
				kubectlHistory: "deployment.apps/web \nREVISION  CHANGE-CAUSE\n2         <none>\n13        <none>\n",
			}, want: "Deployment web has no revision 1: give to_revision one of 2, 13"},
		{name: "no revisions", tool: "undo_rollout", args: `{"kind":"deployment","namespace":"shop","name":"web","to_revision":1}`,
			answers: map[string]string{kubectlRefuses: "unable to find specified revision 1 in history", kubectlHistory: "No rollout history found."},
			want:    "Deployment web has no revisions to go back to"},
		{name: "the first revision", tool: "undo_rollout", args: `{"kind":"deployment","namespace":"shop","name":"web"}`,
			answers: map[string]string{kubectlRefuses: `no rollout history found for deployment "web"`}, want: "Deployment web has no earlier revision to go back to"},
		{name: "the first revision", tool: "undo_rollout", args: `{"kind":"daemonset","namespace":"shop","name":"agent"}`,
			answers: map[string]string{kubectlRefuses: "no last revision to roll back to"}, want: "DaemonSet agent has no earlier revision to go back to"},
		{name: "the same", tool: "undo_rollout", args: `{"kind":"deployment","namespace":"shop","name":"web","to_revision":3}`,
			answers: map[string]string{kubectlRefuses: "nothing to undo: skipped rollback (current template already matches revision 3)"}, want: "nothing to undo: skipped rollback"},

		{name: "no image", tool: "set_image", args: `{"kind":"deployment","namespace":"shop","name":"web","image":""}`, want: badImage},
		{name: "two images", tool: "set_image", args: `{"kind":"deployment","namespace":"shop","name":"web","image":"web:1 web:2"}`, want: badImage},
		{name: "a line end", tool: "set_image", args: `{"kind":"deployment","namespace":"shop","name":"web","image":"web:1\n"}`, want: badImage},
		{name: "an invisible character", tool: "set_image", args: `{"kind":"deployment","namespace":"shop","name":"web","image":"web\u200b:1"}`, want: badImage},
		{name: "long", tool: "set_image", args: `{"kind":"deployment","namespace":"shop","name":"web","image":"` + strings.Repeat("x", 1001) + `"}`, want: "argument image is longer than 1000 characters"},
		{name: "which of several", tool: "set_image", args: `{"kind":"deployment","namespace":"shop","name":"web","image":"web:2"}`, answers: web(containers),
			want: "there are several containers: give container, one of web, side, fetch (init)"},
		{name: "one that is not there", tool: "set_image", args: `{"kind":"deployment","namespace":"shop","name":"web","container":"app","image":"web:2"}`, answers: web(containers),
			want: `there is no container "app": give one of web, side, fetch (init)`},
		{name: "a kind without pods", tool: "set_image", args: `{"kind":"service","namespace":"shop","name":"web","image":"web:2"}`, want: "argument kind is not one of [deployment statefulset daemonset cronjob]"},
	})
}

// People write kinds as kubectl takes them.
func TestWorkloadKind(t *testing.T) {
	for want, given := range map[string]string{
		"deployment":  "deployment Deployment DEPLOYMENTS deploy deployments.apps deployment.v1.apps",
		"statefulset": "StatefulSet statefulsets sts statefulsets.apps",
		"daemonset":   "DaemonSet daemonsets ds",
		"replicaset":  "ReplicaSet rs",
		"cronjob":     "CronJob cronjobs cj cronjobs.batch",
		"job":         "Job jobs jobs.batch",
		"pod":         "Pod pods po",
	} {
		for _, one := range strings.Fields(given) {
			if got := workloadKind(one); got != want {
				t.Errorf("%s is %s, not %s", one, got, want)
			}
		}
	}
	for _, one := range []string{"", "s", "deployments.example.com", "jobs.apps", "Service", "deployment s", "."} {
		if got := workloadKind(one); got != one {
			t.Errorf("%q has become %q", one, got)
		}
	}
	for name, args := range map[string]string{
		"set_image": `,"image":"web:2"`, "restart_rollout": "", "undo_rollout": "", "get_rollout_status": "", "get_rollout_history": "",
	} {
		args = `{"kind":"Deployments.apps","namespace":"shop","name":"web"` + args + "}"
		if got, err := tool(t, name).Decode([]byte(args)); err != nil || got["kind"] != "deployment" {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// What a change made of a workload is said by its images.
func TestRenderImages(t *testing.T) {
	call, err := planIn(t, tool(t, "set_image"), map[string]string{"get deployments.apps shop/web": containers},
		`{"kind":"deploy","namespace":"shop","name":"web","container":"side","image":"side:2"}`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := tool(t, "set_image").Render([]Response{{Action: call.Plan.Actions[0], Body: []byte("{}")}})
	if want := "deployments.apps shop/web image of container side set to side:2"; err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	undone := Response{Action: call.Plan.Actions[0], Body: []byte(`{"spec":{"template":{"spec":{"containers":[{"name":"web","image":"web:1"},{"name":"side","image":"side:1"}]}}}}`)}
	got, err = tool(t, "undo_rollout").Render([]Response{undone})
	if want := "deployments.apps shop/web rolled back to web:1, side:1"; err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}

// A container is changed where it stands, and only if it still stands there.
func TestSetImage(t *testing.T) {
	for _, row := range []struct{ kind, container, path, name string }{
		{"deployment", "web", "/spec/template/spec/containers/0", "web"},
		{"deployment", "side", "/spec/template/spec/containers/1", "side"},
		{"deployment", "fetch", "/spec/template/spec/initContainers/0", "fetch"},
		{"cronjob", "side", "/spec/jobTemplate/spec/template/spec/containers/1", "side"},
		{"cronjob", "fetch", "/spec/jobTemplate/spec/template/spec/initContainers/1", "fetch"},
		{"statefulset", "", "/spec/template/spec/containers/0", "only"},
	} {
		name := map[string]string{"deployment": "web", "cronjob": "report", "statefulset": "db"}[row.kind]
		args := fmt.Sprintf(`{"kind":%q,"namespace":"shop","name":%q,"image":"x:2"`, row.kind, name)
		if row.container != "" {
			args += fmt.Sprintf(`,"container":%q`, row.container)
		}
		call, err := planIn(t, tool(t, "set_image"), map[string]string{
			"get deployments.apps shop/web": containers, "get cronjobs.batch shop/report": inCluster["get cronjobs.batch shop/report"],
			"get statefulsets.apps shop/db": `{"spec":{"template":{"spec":{"initContainers":[{"name":"first"}],"containers":[{"name":"only"}]}}}}`,
		}, args+"}")
		if err != nil {
			t.Errorf("%s %s: %v", row.kind, row.container, err)
			continue
		}
		got, _ := json.Marshal(call.Plan.Actions[0].Body)
		want := fmt.Sprintf(`[{"op":"test","path":"%[1]s/name","value":%[2]q},{"op":"replace","path":"%[1]s/image","value":"x:2"}]`, row.path, row.name)
		if string(got) != want {
			t.Errorf("%s %s:\ngot  %s\nwant %s", row.kind, row.container, got, want)
		}
	}
}

// What is not there, or may not be seen, ends the call in the words of the gate.
func TestReadErrorsStay(t *testing.T) {
	for name, args := range map[string]string{
		"restart_rollout": `{"kind":"deployment","namespace":"shop","name":"other"}`,
		"undo_rollout":    `{"kind":"statefulset","namespace":"shop","name":"other"}`,
		"set_image":       `{"kind":"daemonset","namespace":"shop","name":"other","image":"x"}`,
		"trigger_cronjob": `{"namespace":"shop","name":"other"}`,
		"drain_node":      `{"name":"other"}`,
	} {
		_, err := planIn(t, tool(t, name), inCluster, args)
		var argument *ArgumentError
		if err == nil || errors.As(err, &argument) || !strings.HasSuffix(err.Error(), "other is not found") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The time of a restart stands in its request, and yet the same call again is the same.
func TestRestartIsTheSame(t *testing.T) {
	answers := map[string]string{"get deployments.apps shop/web": "{}", "get statefulsets.apps shop/web": "{}", "get deployments.apps pay/web": "{}"}
	var said []string
	for _, args := range []string{
		`{"kind":"deployment","namespace":"shop","name":"web"}`,
		`{"kind":"deployment","namespace":"shop","name":"web","reason":"again"}`,
		`{"kind":"statefulset","namespace":"shop","name":"web"}`,
		`{"kind":"deployment","namespace":"pay","name":"web"}`,
	} {
		call, err := planIn(t, tool(t, "restart_rollout"), answers, args)
		if err != nil || call.Same == "" {
			t.Fatalf("%s: %+v, %v", args, call, err)
		}
		said = append(said, call.Same)
	}
	if said[0] != said[1] || len(slices.Compact(slices.Sorted(slices.Values(said)))) != 3 {
		t.Errorf("%q", said)
	}
}
