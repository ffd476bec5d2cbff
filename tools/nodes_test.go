package tools

import (
	"slices"
	"strings"
	"testing"

	"countersign/action"
)

func TestNodesRefused(t *testing.T) {
	kubectl := func(words string) map[string]string { return map[string]string{kubectlRefuses: words} }
	refused(t, []refusal{
		{name: "no name", tool: "cordon_node", args: `{"name":""}`, want: "name is empty"},
		{name: "a namespace", tool: "uncordon_node", args: `{"name":"n1","namespace":"shop"}`, want: `unknown argument "namespace"; uncordon_node takes name, reason`},
		{name: "too long", tool: "evict_pod", args: `{"namespace":"shop","name":"web-1","grace_period_seconds":3601}`, want: "argument grace_period_seconds is 3601; from 0 to 3600 is expected"},
		{name: "no namespace", tool: "evict_pod", args: `{"namespace":"","name":"web-1"}`, want: "pods live in namespaces: give namespace"},
		{name: "a selector that is none", tool: "drain_node", args: `{"name":"n1","pod_selector":"a in b"}`, want: "pod_selector: "},
		{name: "pods of a DaemonSet", tool: "drain_node", args: `{"name":"n1"}`, answers: kubectl("cannot delete DaemonSet-managed Pods (use --ignore-daemonsets to ignore): shop/agent-1"),
			want: "cannot delete DaemonSet-managed Pods (ignore_daemonsets leaves them): shop/agent-1"},
		{name: "data", tool: "drain_node", args: `{"name":"n1"}`, answers: kubectl("cannot delete Pods with local storage (use --delete-emptydir-data to override): shop/db-0"),
			want: "cannot delete Pods with local storage (delete_emptydir_data allows it; the data is lost): shop/db-0"},
		{name: "pods without a controller", tool: "drain_node", args: `{"name":"n1"}`, answers: kubectl("cannot delete Pods that declare no controller (use --force to override): shop/bare"),
			want: "cannot delete Pods that declare no controller (force allows it; nothing starts them again): shop/bare"},
		{name: "too many", tool: "drain_node", args: `{"name":"n1"}`, answers: map[string]string{kubectlPods: strings.Repeat("web ", 251)},
			want: "251 pods would be evicted; 250 is the most that one call takes: narrow with pod_selector"},
	})
	if _, err := planIn(t, tool(t, "drain_node"), map[string]string{
		"get nodes n1": "{}", kubectlRefuses: "cannot delete Pods that declare no controller (use --force to override): " + strings.Repeat("shop/bare, ", 1000),
	}, `{"name":"n1"}`); err == nil || len(err.Error()) > maxRefused+10 || !strings.HasSuffix(err.Error(), "shop/bare and more") {
		t.Error(err)
	}
}

// kubectl's code is asked with the call's options, after the node was seen.
func TestDrainAsks(t *testing.T) {
	for args, want := range map[string]string{
		`{"name":"n1"}`: "drain n1 {IgnoreDaemonSets:true DeleteEmptyDirData:false Force:false PodSelector:}",
		`{"name":"n1","ignore_daemonsets":true,"force":true}`:                                             "drain n1 {IgnoreDaemonSets:true DeleteEmptyDirData:false Force:true PodSelector:}",
		`{"name":"n1","ignore_daemonsets":false,"delete_emptydir_data":true,"pod_selector":"app in (a)"}`: "drain n1 {IgnoreDaemonSets:false DeleteEmptyDirData:true Force:false PodSelector:app in (a)}",
	} {
		drain := tool(t, "drain_node")
		reader := held(t, drain, inCluster)
		decoded, err := drain.Decode([]byte(args))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := drain.Plan(t.Context(), reader, decoded); err != nil || !slices.Equal(reader.asked, []string{"get nodes n1", want}) {
			t.Errorf("%s: asked %q, %v", args, reader.asked, err)
		}
	}
}

func TestRenderDrain(t *testing.T) {
	drain := tool(t, "drain_node")
	cordon := Response{Action: action.Action{Verb: action.Patch, Resource: nodes, Name: "n1"}}
	evicted := Response{Action: eviction(PodRef{"shop", "web-1"}, nil)}
	for want, responses := range map[string][]Response{
		"node n1 cordoned\nNo pod was to be evicted.\nRunning pods of DaemonSets and static pods stay.": {cordon},
		"node n1 cordoned\npod shop/web-1 evicted\nRunning pods of DaemonSets and static pods stay.":    {cordon, evicted},
	} {
		if got, err := drain.Render(responses); got != want || err != nil {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
}
