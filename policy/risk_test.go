package policy

import (
	"slices"
	"strings"
	"testing"

	"countersign/action"
)

// Each risk, and what comes near it.
func TestRisks(t *testing.T) {
	pod := func(spec string) string { return `{"spec":{"template":{"spec":` + spec + `}}}` }
	const scale = "patch deployments.apps/scale shop/web"
	const patch = "patch deployments.apps shop/web"
	zero, five := int64(0), int64(5)
	for _, row := range []struct {
		name, request, live, result string
		options                     action.Options
		want                        string
	}{
		{name: "nothing", request: patch, live: `{"metadata":{"labels":{}},"spec":{"replicas":2}}`, result: `{"metadata":{"labels":{"a":"b"}},"spec":{"replicas":3}}`},

		{name: "to zero", request: scale, live: `{"spec":{"replicas":2}}`, result: `{"spec":{"replicas":0}}`, want: RiskReplicasToZero},
		{name: "to zero, by a number with a point", request: patch, live: `{"spec":{"replicas":2}}`, result: `{"spec":{"replicas":0.0}}`, want: RiskReplicasToZero},
		{name: "to zero, from what is not said", request: "patch websites.example.com shop/web", live: `{"spec":{}}`, result: `{"spec":{"replicas":0}}`, want: RiskReplicasToZero},
		{name: "to one", request: scale, live: `{"spec":{"replicas":2}}`, result: `{"spec":{"replicas":1}}`},
		{name: "from zero", request: scale, live: `{"spec":{"replicas":0}}`, result: `{"spec":{"replicas":1}}`},
		{name: "of a custom resource", request: "patch clusters.example.com shop/db", live: `{"spec":{"db":{"replicas":2}}}`, result: `{"spec":{"db":{"replicas":0}}}`, want: RiskReplicasToZero},
		{name: "made with zero", request: "apply deployments.apps shop/web", result: `{"spec":{"replicas":0}}`},
		{name: "another field", request: patch, live: `{"spec":{"minReadySeconds":2,"maxreplicas":1}}`, result: `{"spec":{"minReadySeconds":0,"maxreplicas":0}}`},

		{name: "image", request: patch, live: pod(`{"containers":[{"name":"c","image":"a:1"}]}`), result: pod(`{"containers":[{"name":"c","image":"a:2"}]}`), want: RiskImageChanged},
		{name: "command", request: patch, live: pod(`{"containers":[{"name":"c","image":"a:1"}]}`), result: pod(`{"containers":[{"name":"c","image":"a:1","command":["env"]}]}`), want: RiskCommandChanged},
		{name: "command taken away", request: patch, live: pod(`{"containers":[{"name":"c","image":"a:1","args":["x"]}]}`), result: pod(`{"containers":[{"name":"c","image":"a:1"}]}`), want: RiskCommandChanged},
		{name: "probe", request: patch, live: pod(`{"containers":[{"name":"c","image":"a:1"}]}`), result: pod(`{"containers":[{"name":"c","image":"a:1","livenessProbe":{"exec":{"command":["id"]}}}]}`), want: RiskCommandChanged},
		{name: "image of one more", request: patch, live: pod(`{"containers":[{"name":"c","image":"a:1"}]}`), result: pod(`{"containers":[{"name":"c","image":"a:1"}],"initContainers":[{"name":"i","image":"b"}]}`), want: RiskImageChanged + ", " + RiskCommandChanged},
		{name: "image of a new object", request: patch, result: pod(`{"containers":[{"name":"c","image":"a:2"}]}`)},
		{name: "containers in another order", request: patch, live: pod(`{"containers":[{"name":"c","image":"a"},{"name":"d","image":"b"}]}`), result: pod(`{"containers":[{"name":"d","image":"b"},{"name":"c","image":"a"}]}`)},
		{name: "one container less", request: patch, live: pod(`{"containers":[{"name":"c","image":"a"},{"name":"d","image":"b"}]}`), result: pod(`{"containers":[{"name":"c","image":"a"}]}`)},

		{name: "privileged", request: patch, live: pod(`{"containers":[{"name":"c"}]}`), result: pod(`{"containers":[{"name":"c","securityContext":{"privileged":true}}]}`), want: RiskPrivilegeGained},
		{name: "privileged, made so", request: patch, result: pod(`{"containers":[{"name":"c","securityContext":{"privileged":true}}]}`), want: RiskPrivilegeGained},
		{name: "one more is", request: patch, live: pod(`{"containers":[{"name":"c","securityContext":{"privileged":true}},{"name":"d"}]}`), result: pod(`{"containers":[{"name":"c","securityContext":{"privileged":true}},{"name":"d","securityContext":{"privileged":true}}]}`), want: RiskPrivilegeGained},
		{name: "privileged before", request: patch, live: pod(`{"containers":[{"name":"c","securityContext":{"privileged":true}}]}`), result: pod(`{"containers":[{"name":"c","tty":true,"securityContext":{"privileged":true}}]}`)},
		{name: "not any more", request: patch, live: pod(`{"containers":[{"name":"c","securityContext":{"privileged":true}}]}`), result: pod(`{"containers":[{"name":"c"}]}`)},
		{name: "root, within the baseline", request: patch, live: pod(`{"containers":[{"name":"c"}]}`), result: pod(`{"containers":[{"name":"c","securityContext":{"runAsUser":0}}]}`)},
		{name: "unreadable", request: patch, live: pod(`{"containers":[{"name":"c"}]}`), result: pod(`{"containers":[{"name":"c","securityContext":"x"}]}`), want: RiskPrivilegeGained},

		{name: "service account", request: patch, live: pod(`{"serviceAccountName":"a","containers":[{}]}`), result: pod(`{"serviceAccountName":"b","containers":[{}]}`), want: RiskIdentityChanged},
		{name: "service account by its old name", request: patch, live: pod(`{"serviceAccount":"a","containers":[{}]}`), result: pod(`{"serviceAccount":"b","containers":[{}]}`), want: RiskIdentityChanged},
		{name: "service account spelt in full", request: patch, live: pod(`{"serviceAccount":"a","containers":[{}]}`), result: pod(`{"serviceAccountName":"a","serviceAccount":"a","containers":[{}]}`)},
		{name: "service account of a new object", request: patch, result: pod(`{"serviceAccountName":"b","containers":[{}]}`)},

		{name: "selector", request: "patch services shop/a", live: `{"spec":{"selector":{"app":"a"}}}`, result: `{"spec":{"selector":{"app":"b"}}}`, want: RiskSelectorChanged},
		{name: "selector gone", request: "patch services shop/a", live: `{"spec":{"selector":{"app":"a"}}}`, result: `{"spec":{}}`, want: RiskSelectorChanged},
		{name: "another selector", request: patch, live: `{"spec":{"selectors":1,"template":{"spec":{"nodeSelector":{"a":"b"}}}}}`, result: `{"spec":{"selectors":2,"template":{"spec":{"nodeSelector":{"a":"c"}}}}}`},

		{name: "a key", request: "patch configmaps shop/a", live: `{"data":{"a":"1","b":"2"}}`, result: `{"data":{"a":"1"}}`, want: RiskDataRemoved},
		{name: "all keys", request: "patch configmaps shop/a", live: `{"binaryData":{"a":"1"}}`, result: `{}`, want: RiskDataRemoved},
		{name: "a value", request: "patch configmaps shop/a", live: `{"data":{"a":"1"}}`, result: `{"data":{"a":"2","b":"3"}}`},
		{name: "a claim", request: "patch statefulsets.apps shop/a", live: `{"spec":{"volumeClaimTemplates":[{},{}]}}`, result: `{"spec":{"volumeClaimTemplates":[{}]}}`, want: RiskDataRemoved},
		{name: "a setting", request: patch, live: `{"metadata":{"labels":{"data":"x"}},"dataSource":{"a":1},"spec":{"a":1}}`, result: `{"metadata":{"labels":{}},"dataSource":{},"spec":{}}`},

		{name: "deletion", request: "delete pods shop/web", live: `{}`, want: RiskDeleted},
		{name: "deletion of what holds data", request: "delete persistentvolumeclaims shop/a", live: `{}`, want: RiskDeleted + ", " + RiskDataRemoved},
		{name: "deletion of a definition", request: "delete customresourcedefinitions.apiextensions.k8s.io shop/a", live: `{}`, want: RiskDeleted + ", " + RiskDataRemoved},
		{name: "deletion of a Secret, as one risk", request: "delete secrets shop/a", live: `{"data":{"a":"b"}}`, want: RiskDeleted + ", " + RiskDataRemoved},

		{name: "finalizer", request: "patch configmaps shop/a", live: `{"metadata":{"finalizers":["a"]}}`, result: `{"metadata":{}}`, want: RiskOwnership},
		{name: "owner", request: "patch configmaps shop/a", live: `{"metadata":{"ownerReferences":[{"uid":"1"}]}}`, result: `{"metadata":{"ownerReferences":[{"uid":"2"}]}}`, want: RiskOwnership},
		{name: "a label of that name", request: "patch configmaps shop/a", live: `{"metadata":{"labels":{"finalizers":"1"}}}`, result: `{"metadata":{"labels":{"finalizers":"2"}}}`},

		{name: "forced", request: "apply configmaps shop/a", result: `{}`, options: action.Options{PatchType: action.ApplyPatch, Force: true}, want: RiskForced},
		{name: "orphaned", request: "delete pods shop/web", live: `{}`, options: action.Options{PropagationPolicy: "Orphan"}, want: RiskDeleted + ", " + RiskOrphaned},
		{name: "not orphaned", request: "delete pods shop/web", live: `{}`, options: action.Options{PropagationPolicy: "Foreground", GracePeriodSeconds: &five}, want: RiskDeleted},
		{name: "no grace", request: "delete pods shop/web", live: `{}`, options: action.Options{GracePeriodSeconds: &zero}, want: RiskDeleted + ", " + RiskNoGrace},
	} {
		preview := action.NewPreview(object(t, row.live), object(t, row.result))
		a := request(t, row.request)
		a.Options = row.options
		w := given(t, "  - {name: r, effect: allow, when: 'risks == "+asJSON(t, notNil(split(row.want)))+"'}").with(func(r *Request) { r.Action, r.Preview = a, &preview })
		if d := w.set.Decide(w.req); strings.Join(d.Risks, ", ") != row.want || d.Effect != Allow {
			t.Errorf("%s: %s, %q; want %q", row.name, d.Effect, d.Risks, row.want)
		}
	}

	// Without a preview there is none to see, and the risks of several Actions add up.
	if d := given(t, "  - {name: r, effect: allow}").decide("delete secrets shop/a"); len(d.Risks) != 0 {
		t.Errorf("without a preview: %+v", d)
	}
	d := Strictest([]Decision{{Effect: Allow, Risks: []string{RiskDeleted}}, {Effect: Deny, Risks: []string{RiskForced, RiskDeleted}}, {Effect: Allow, Risks: []string{RiskNoGrace}}})
	if !slices.Equal(d.Risks, []string{RiskDeleted, RiskForced, RiskNoGrace}) {
		t.Errorf("of several: %+v", d)
	}
}

func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ", ")
}
