package policy

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"countersign/action"
)

// asking is a world in which a person is asked about everything, under guards
// that are in force but for some.
func asking(t *testing.T, approval string, off ...string) *world {
	t.Helper()
	w := given(t, "  - {name: x, effect: allow}")
	text := header + "  - {name: ask, effect: require_approval, approval: {approvers: [sre]" + approval + "}}\n"
	if len(off) > 0 {
		text += "  guardsOff: [" + strings.Join(off, ", ") + "]\n"
	}
	set, err := load(fstest.MapFS{"p.yaml": {Data: []byte(text)}})
	if err != nil {
		t.Fatal(err)
	}
	w.set = set
	return w
}

// call is a try as a Call of one Action.
func (w *world) call(row try) *Call {
	w.t.Helper()
	req := w.asked(row)
	c := &Call{Principal: req.Principal, Plan: action.Plan{Tool: req.Tool, Actions: []action.Action{*req.Action}}, Now: req.Now}
	if req.Preview != nil {
		c.Previews = []action.Preview{*req.Preview}
	}
	return c
}

const (
	scaleTo3 = "patch deployments.apps/scale shop/web"
	patchWeb = "patch deployments.apps shop/web"
)

func deployment(spec string) string { return `{"spec":{"template":{"spec":` + spec + `}}}` }

// What may be granted at all, and what comes near it.
func TestGrantable(t *testing.T) {
	scaled := func(request string) try {
		return try{request: request, live: `{"spec":{"x":1}}`, result: `{"spec":{"x":2}}`}
	}
	pods := func(live, result string) try {
		return try{request: patchWeb, live: deployment(live), result: deployment(result)}
	}
	zero := int64(0)
	for _, row := range []struct {
		name     string
		try      try
		tool     string
		approval string
		off      []string
		change   func(*Call, *Decision)
		want     bool
	}{
		{name: "a number of replicas", try: try{request: scaleTo3, live: `{"spec":{"replicas":2}}`, result: `{"spec":{"replicas":3}}`}, want: true},
		{name: "said to be allowed", try: scaled(patchWeb), approval: ", grant: allowed, channel: C0123ABCD", want: true},
		{name: "an image", try: pods(`{"containers":[{"name":"c","image":"a:1"}]}`, `{"containers":[{"name":"c","image":"a:2"}]}`), want: true},
		{name: "a value of a ConfigMap", try: try{request: "apply configmaps shop/a", body: `{"data":{"a":"2"}}`, live: `{"data":{"a":"1"}}`, result: `{"data":{"a":"2"}}`}, want: true},
		{name: "a new ConfigMap", try: try{request: "create configmaps shop/a", body: `{"data":{"a":"2"}}`, result: `{"data":{"a":"2"}}`}, want: true},
		{name: "a custom resource", try: scaled("patch websites.example.com shop/web"), want: true},
		{name: "a Job of a CronJob", tool: "trigger_cronjob", try: try{request: "create jobs.batch shop/", body: `{"metadata":{"ownerReferences":[{}]}}`, result: deployment(plain)}, want: true},
		{name: "in a namespace of the cluster", try: scaled("patch deployments.apps/scale kube-system/dns"), want: true},
		{name: "volume claims", try: scaled("patch persistentvolumeclaims shop/data"), want: true},
		{name: "a read before", try: scaled(patchWeb), change: func(c *Call, _ *Decision) {
			c.Plan.Actions = append([]action.Action{*request(t, "get deployments.apps shop/web")}, c.Plan.Actions...)
			c.Previews = append([]action.Preview{{}}, c.Previews...)
		}, want: true},

		{name: "grant: never", try: scaled(patchWeb), approval: ", grant: never"},
		{name: "grant: never, of one rule among two", try: scaled(patchWeb), change: func(_ *Call, d *Decision) {
			d.Approvals = append(d.Approvals, Approval{Rule: "other", NoGrant: true})
		}},
		{name: "allowed as it is", try: scaled(patchWeb), change: func(_ *Call, d *Decision) { d.Effect = Allow }},
		{name: "denied", try: scaled(patchWeb), change: func(_ *Call, d *Decision) { d.Effect = Deny }},
		{name: "not decided yet", try: scaled(patchWeb), change: func(_ *Call, d *Decision) { d.Needs = NeedNamespace }},
		{name: "no previews", try: try{request: "patch configmaps shop/a"}},
		{name: "a preview too few", try: scaled(patchWeb), change: func(c *Call, _ *Decision) {
			c.Plan.Actions = append(c.Plan.Actions, c.Plan.Actions[0])
		}},
		{name: "a preview of nothing", try: try{request: "patch configmaps shop/a", live: `{"data":{"a":"1"}}`}},
		{name: "a read", try: scaled("get deployments.apps shop/web")},
		{name: "no change", try: try{request: patchWeb, live: `{"spec":{"replicas":2}}`, result: `{"spec":{"replicas":2}}`}},
		{name: "nothing at all", try: scaled(patchWeb), change: func(c *Call, _ *Decision) { c.Plan.Actions, c.Previews = nil, nil }},
		{name: "one of several is not", try: scaled(patchWeb), change: func(c *Call, _ *Decision) {
			c.Plan.Actions = append(c.Plan.Actions, *request(t, "apply secrets shop/a"))
			c.Previews = append(c.Previews, c.Previews[0])
		}},

		{name: "deletion", try: try{request: "delete configmaps shop/a", live: `{}`}},
		{name: "deletion, with what is left", try: scaled("delete configmaps shop/a")},
		{name: "deletion of many", try: scaled("deletecollection configmaps shop/")},
		{name: "eviction", try: try{request: "create pods/eviction shop/a", live: `{}`}},
		{name: "command", try: scaled("create pods/exec shop/a")},
		{name: "debugging", try: scaled("patch pods/ephemeralcontainers shop/a")},
		{name: "a new pod", try: try{request: "create pods shop/a", result: `{"spec":` + plain + `}`}},
		{name: "a new Job", try: try{request: "create jobs.batch shop/a", result: deployment(plain)}},
		{name: "a Job of a CronJob that the API server fills in worse", tool: "trigger_cronjob", try: try{request: "create jobs.batch shop/", result: deployment(`{"hostPID":true,"containers":[{"name":"c"}]}`)}},
		{name: "a new object with more pods than are looked at", try: try{request: "create websites.example.com shop/a", result: `{"spec":[` + strings.Repeat(`{"hostPID":true},`, maxPods) + `{"hostPID":true}]}`}},

		{name: "Secret", try: scaled("patch secrets shop/a")},
		{name: "ServiceAccount", try: scaled("patch serviceaccounts shop/a")},
		{name: "Role", try: scaled("patch roles.rbac.authorization.k8s.io shop/a")},
		{name: "Node", try: scaled("patch nodes n1")},
		{name: "Namespace", try: scaled("patch namespaces shop")},
		{name: "volume", try: scaled("patch persistentvolumes v1")},
		{name: "a read of a Secret before", try: scaled(patchWeb), change: func(c *Call, _ *Decision) {
			c.Plan.Actions = append(c.Plan.Actions, *request(t, "get secrets shop/a"))
			c.Previews = append(c.Previews, action.Preview{})
		}},

		{name: "guard that is off", try: try{request: "patch endpoints shop/a", live: `{"subsets":[{"x":1}]}`, result: `{"subsets":[{"x":2}]}`}, off: []string{"guard:endpoints"}},
		{name: "guard of pods that is off", try: pods(plain, `{"containers":[{"name":"c","image":"nginx","env":[{"name":"A","valueFrom":{"secretKeyRef":{"name":"db","key":"k"}}}]}]}`), off: []string{"guard:secret-references"}},
		{name: "a pod that broke a guard before", try: pods(`{"hostPID":true,"containers":[{"name":"c","image":"a:1"}]}`, `{"hostPID":true,"containers":[{"name":"c","image":"a:2"}]}`), off: []string{"guard:host-access"}},
		{name: "guards that are all off", try: try{request: "patch configmaps kube-system/a", live: `{"data":{"a":"1"}}`, result: `{"data":{"a":"2"}}`}, off: guardNames()},

		{name: "to zero", try: try{request: scaleTo3, live: `{"spec":{"replicas":2}}`, result: `{"spec":{"replicas":0}}`}},
		{name: "command changed", try: pods(plain, `{"containers":[{"name":"c","image":"nginx","args":["x"]}]}`)},
		{name: "selector", try: try{request: "patch services shop/a", live: `{"spec":{"selector":{"app":"a"}}}`, result: `{"spec":{"selector":{"app":"b"}}}`}},
		{name: "data removed", try: try{request: "patch configmaps shop/a", live: `{"data":{"a":"1","b":"2"}}`, result: `{"data":{"a":"1"}}`}},
		{name: "finalizer", try: try{request: "patch configmaps shop/a", live: `{"metadata":{}}`, result: `{"metadata":{"finalizers":["a"]}}`}},
		{name: "privilege", try: pods(plain, `{"hostPID":true,"containers":[{"name":"c","image":"nginx"}]}`), off: guardNames()},
		{name: "identity", try: pods(plain, `{"serviceAccountName":"b","containers":[{"name":"c","image":"nginx"}]}`), off: guardNames()},
		{name: "forced", try: scaled("apply configmaps shop/a"), change: func(c *Call, _ *Decision) { c.Plan.Actions[0].Options.Force = true }},
		{name: "dependents", try: scaled(patchWeb), change: func(c *Call, _ *Decision) { c.Plan.Actions[0].Options.PropagationPolicy = "Orphan" }},
		{name: "no grace", try: scaled(patchWeb), change: func(c *Call, _ *Decision) { c.Plan.Actions[0].Options.GracePeriodSeconds = &zero }},
		{name: "a risk of the decision", try: scaled(patchWeb), change: func(_ *Call, d *Decision) { d.Risks = []string{RiskImageChanged, RiskSelectorChanged} }},
		{name: "a risk of tomorrow", try: scaled(patchWeb), change: func(_ *Call, d *Decision) { d.Risks = []string{"something else"} }},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := asking(t, row.approval, row.off...)
			if row.tool != "" {
				w.req.Tool = row.tool
			}
			c := w.call(row.try)
			d := w.set.DecideCall(c)
			if row.want && d.Effect != RequireApproval {
				t.Fatalf("is not asked for: %+v", d)
			}
			if !row.want && d.Effect == Deny { // by a guard; what if it were off?
				d = Decision{Effect: RequireApproval, Approvals: []Approval{{Rule: "ask"}}, Risks: d.Risks}
			}
			if row.change != nil {
				row.change(c, &d)
			}
			if got := w.set.Grantable(c, d); got != row.want {
				t.Errorf("got %v; want %v; decision %+v", got, row.want, d)
			}
		})
	}
}

// The kinds and subresources that a grant is never about, whatever guards say.
func TestGrantableKinds(t *testing.T) {
	about := func(text string) bool {
		tgt := targetOf(&Request{Principal: &action.Principal{}, Tool: "t", Action: request(t, text)})
		return grantable.mismatch(&tgt, true) == ""
	}
	for _, text := range []string{
		"get secrets shop/a", "patch secrets shop/a", "create externalsecrets.external-secrets.io shop/a", "patch vaultstaticsecrets.secrets.hashicorp.com shop/a",
		"patch serviceaccounts shop/a", "create serviceaccounts/token shop/a", "create tokenreviews.authentication.k8s.io shop/a",
		"create selfsubjectreviews.authentication.k8s.io shop/a", "patch tokens.example.com shop/a",
		"patch certificatesigningrequests.certificates.k8s.io shop/a", "patch clustertrustbundles.certificates.k8s.io shop/a",
		"patch roles.rbac.authorization.k8s.io shop/a", "patch clusterroles.rbac.authorization.k8s.io shop/a", "patch things.rbac.authorization.k8s.io shop/a",
		"create subjectaccessreviews.authorization.k8s.io shop/a", "patch securitycontextconstraints.security.openshift.io shop/a",
		"patch roles.example.com shop/a", "patch clusterroles.example.com shop/a", "patch rolebindings.example.com shop/a", "patch clusterrolebindings.example.com shop/a",
		"patch validatingadmissionpolicies.admissionregistration.k8s.io shop/a", "patch webhooks.example.com shop/a",
		"patch clusterpolicies.kyverno.io shop/a", "patch assign.mutations.gatekeeper.sh shop/a", "patch admissionpolicies.policies.kubewarden.io shop/a",
		"patch customresourcedefinitions.apiextensions.k8s.io shop/a", "patch apiservices.apiregistration.k8s.io shop/a",
		"patch nodes n1", "get nodes n1", "patch namespaces shop", "patch persistentvolumes v1",
		"delete configmaps shop/a", "deletecollection configmaps shop/", "watch configmaps shop/",
		"create pods/exec shop/a", "get pods/exec shop/a", "create pods/attach shop/a", "create pods/portforward shop/a", "get pods/proxy shop/a", "create pods/eviction shop/a",
		"create pods/binding shop/a", "patch pods/ephemeralcontainers shop/a", "update namespaces/finalize shop", "patch pods/teleport shop/a",
	} {
		if about(text) {
			t.Errorf("%s can be granted", text)
		}
	}
	for _, text := range []string{
		"get configmaps shop/a", "list pods shop/", "apply configmaps shop/a", "update configmaps shop/a", "create configmaps shop/a", "patch deployments.apps/scale shop/web", "patch pods/resize shop/a",
		"patch deployments.apps shop/web", "patch persistentvolumeclaims shop/a", "patch nodesets.example.com shop/a", "patch ingresses.networking.k8s.io shop/a",
	} {
		if !about(text) {
			t.Errorf("%s cannot be granted", text)
		}
	}
}

// The risks are those of the previews, also where the decision was made without.
func TestGrantableLooksItself(t *testing.T) {
	w := asking(t, "")
	c := w.call(try{request: "patch services shop/a", body: `{"spec":{"selector":{"app":"b"}}}`, live: `{"spec":{"selector":{"app":"a"}}}`, result: `{"spec":{"selector":{"app":"b"}}}`})
	d := w.set.DecideCall(&Call{Principal: c.Principal, Plan: c.Plan, Now: noon})
	if d.Effect != RequireApproval || len(d.Risks) != 0 {
		t.Fatalf("decision %+v", d)
	}
	if w.set.Grantable(c, d) {
		t.Error("is grantable")
	}
}

// What every guard denies is guarded, whether the guard is in force or not, and
// what it leaves alone is not guarded by it.
func TestGuarded(t *testing.T) {
	on, off, allowing := asking(t, ""), asking(t, "", guardNames()...), guarded(t)
	if len(off.set.rules) != 1 || len(builtIn()) != len(on.set.rules)-1 {
		t.Fatalf("%d guards of %d are looked at; %d rules where all are off", len(builtIn()), len(on.set.rules)-1, len(off.set.rules))
	}
	for name, row := range guardTable {
		denies, leaves := slices.Clone(row.denies), slices.Clone(row.leaves)
		for _, shape := range shapes {
			for _, pod := range row.deniesPods {
				denies = append(denies, pod.in(shape.object, shape.request))
			}
			for _, pod := range row.leavesPods {
				leaves = append(leaves, pod.in(shape.object, shape.request))
			}
		}
		for _, denied := range denies {
			for _, w := range []*world{on, off} {
				if c := w.call(denied); !w.set.Guarded(c) {
					t.Errorf("%s: %+v is not guarded, off: %v", name, denied, w.set.guardsOff)
				}
			}
		}
		for _, free := range leaves {
			c := on.call(free)
			d := allowing.set.DecideCall(c) // another guard may deny it
			if got := on.set.Guarded(c); got != (d.Effect != Allow) || off.set.Guarded(c) != got {
				t.Errorf("%s: %+v: guarded %v, with all guards off %v; decision %+v", name, free, got, off.set.Guarded(c), d)
			}
		}
	}

	w := off
	small := try{request: "patch configmaps shop/a", body: `{"data":{"a":"2"}}`, live: `{"data":{"a":"1"}}`, result: `{"data":{"a":"2"}}`}
	two := w.call(small)
	if w.set.Guarded(two) {
		t.Error("a ConfigMap is guarded")
	}
	two.Plan.Actions = append(two.Plan.Actions, *request(t, "patch endpoints shop/a"))
	two.Previews = append(two.Previews, two.Previews[0])
	if !w.set.Guarded(two) {
		t.Error("the second of two requests is not looked at")
	}
	if !w.set.Guarded(w.call(try{request: patchWeb})) {
		t.Error("what cannot be told without a preview is not guarded")
	}
	unreadable := w.call(try{request: "create websites.example.com shop/a", body: `{"spec":{}}`, result: deployment(`{"containers":[{"name":"c","securityContext":"x"}]}`)})
	if !w.set.Guarded(unreadable) {
		t.Error("what fails is not guarded")
	}
}
