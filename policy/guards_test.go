package policy

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	psa "k8s.io/pod-security-admission/api"
	psapolicy "k8s.io/pod-security-admission/policy"

	"countersign/action"
)

// guarded is a world in which everything is allowed that no guard denies, but
// for the guards that are switched off.
func guarded(t *testing.T, off ...string) *world {
	t.Helper()
	w := given(t, "  - {name: all, effect: allow}")
	text := header + "  - {name: all, effect: allow}\n"
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

// try is a request with what it sends and what its preview shows, as JSON. Where
// live and result are both empty nothing was previewed, and nothing may have to be.
type try struct{ request, body, live, result string }

func (w *world) try(row try) Decision {
	w.t.Helper()
	return w.set.Decide(w.asked(row))
}

func (w *world) asked(row try) Request {
	w.t.Helper()
	req := w.req
	req.Action = request(w.t, row.request)
	if req.Action.Verb == action.Patch && req.Action.Options.PatchType == "" {
		req.Action.Options.PatchType = action.MergePatch
	}
	switch {
	case strings.HasPrefix(row.body, "["):
		req.Action.Options.PatchType = action.JSONPatch
		req.Action.Body = object(w.t, `{"x":`+row.body+`}`)["x"]
	case row.body != "":
		req.Action.Body = object(w.t, row.body)
	default:
		req.Action.Body = map[string]any{"spec": map[string]any{}}
	}
	if row.live+row.result != "" {
		preview := action.NewPreview(object(w.t, row.live), object(w.t, row.result))
		req.Preview = &preview
	}
	return req
}

// shapes are objects that hold a pod, and the requests that write them.
var shapes = []struct{ name, request, object string }{
	{"Pod", "apply pods shop/web", `{"kind":"Pod","metadata":{},"spec":POD}`},
	{"created", "create pods shop/", `{"kind":"Pod","metadata":{"generateName":"web-"},"spec":POD}`},
	{"ephemeral containers", "patch pods/ephemeralcontainers shop/web", `{"kind":"Pod","metadata":{},"spec":POD}`},
	{"resize", "patch pods/resize shop/web", `{"kind":"Pod","metadata":{},"spec":POD}`},
	{"Deployment", "patch deployments.apps shop/web", `{"kind":"Deployment","spec":{"template":{"metadata":{},"spec":POD}}}`},
	{"ReplicaSet", "apply replicasets.apps shop/web", `{"kind":"ReplicaSet","spec":{"template":{"spec":POD}}}`},
	{"DaemonSet", "update daemonsets.apps shop/web", `{"kind":"DaemonSet","spec":{"template":{"spec":POD}}}`},
	{"ControllerRevision", "apply controllerrevisions.apps shop/web", `{"data":{"spec":{"template":{"$patch":"replace","spec":POD}}}}`},
	{"PodTemplate", "create podtemplates shop/web", `{"template":{"spec":POD}}`},
	{"Job", "create jobs.batch shop/web", `{"kind":"Job","spec":{"template":{"spec":POD}}}`},
	{"CronJob", "apply cronjobs.batch shop/web", `{"kind":"CronJob","spec":{"jobTemplate":{"spec":{"template":{"spec":POD}}}}}`},
	{"custom resource", "apply websites.example.com shop/web", `{"kind":"Website","spec":{"pod":POD}}`},
	{"custom resource of a group that sounds like another", "apply things.acme.policy shop/web", `{"spec":{"pod":POD}}`},
	{"a List of Deployments in a custom resource", "apply manifestworks.work.example.com shop/web",
		`{"spec":{"manifests":[{"kind":"List","items":[{"kind":"ConfigMap"},{"kind":"Deployment","spec":{"template":{"spec":POD}}}]}]}}`},
	{"lists in lists, and keys that pointers escape", "apply websites.example.com shop/web", `{"spec":{"a/b~1":[[[{"~":{"":POD}}]]]}}`},
}

// podTry is one pod before and after; live is empty where there was none.
type podTry struct{ live, result string }

func (p podTry) in(shape, request string) try {
	row := try{request: request, result: strings.Replace(shape, "POD", p.result, 1)}
	if p.live != "" {
		row.live = strings.Replace(shape, "POD", p.live, 1)
	}
	return row
}

const plain = `{"containers":[{"name":"c","image":"nginx"}]}`

// Every guard, what it denies and what it leaves alone.
var guardTable = map[string]struct {
	denies, leaves         []try
	deniesPods, leavesPods []podTry // in every shape
}{
	"guard:rbac-roles": {
		denies: []try{
			{request: "create roles.rbac.authorization.k8s.io shop/r"}, {request: "apply clusterroles.rbac.authorization.k8s.io shop/r"},
			{request: "patch roles.rbac.authorization.k8s.io shop/r"}, {request: "update clusterroles.rbac.authorization.k8s.io shop/r"},
		},
		leaves: []try{{request: "get roles.rbac.authorization.k8s.io shop/r"}, {request: "delete roles.rbac.authorization.k8s.io shop/r"},
			{request: "create rolesets.example.com shop/r", result: `{}`}},
	},
	"guard:rbac-bindings": {
		denies: []try{
			{request: "create rolebindings.rbac.authorization.k8s.io shop/r"}, {request: "apply clusterrolebindings.rbac.authorization.k8s.io shop/r"},
			{request: "patch rolebindings.rbac.authorization.k8s.io shop/r"}, {request: "update clusterrolebindings.rbac.authorization.k8s.io shop/r"},
		},
		leaves: []try{{request: "list rolebindings.rbac.authorization.k8s.io"}, {request: "delete clusterrolebindings.rbac.authorization.k8s.io shop/r"}},
	},
	"guard:host-access": {
		// Every check of the standard is in TestPodSecurityBaseline.
		deniesPods: []podTry{
			{"", `{"hostPID":true}`},
			{"", `{"containers":[{"name":"c","securityContext":{"privileged":true}}]}`},
			{"", `{"containers":[],"initContainers":[{"name":"c","securityContext":{"privileged":true}}]}`},
			{plain, `{"containers":[{"name":"c"}],"ephemeralContainers":[{"name":"c","securityContext":{"privileged":true}}]}`},
			{"", `{"volumes":[{"name":"v","hostPath":{"path":"/"}}]}`},
			// What looks like a pod and cannot be read as one may be anything.
			{"", `{"containers":[{"name":"c","securityContext":{"privileged":"true"}}]}`},
			{"", `{"containers":[{"name":"c"}],"hostNetwork":"yes"}`},
			{"", `{"containers":[{"name":"c"}],"securityContext":[]}`},
		},
		leavesPods: []podTry{
			{"", plain},
			{"", `{"hostNetwork":false,"hostPID":false,"containers":[{"name":"c","securityContext":{"privileged":false}}]}`},
			{"", `{"containers":[{"name":"c","securityContext":{"runAsUser":0,"allowPrivilegeEscalation":true}}]}`}, // baseline, not restricted
			{"", `{"containers":[{"name":"c"}],"volumes":[{"name":"v","emptyDir":{}}]}`},
			{"", `{"hostUsers":false,"containers":[{"name":"c","securityContext":{"procMount":"Unmasked"}}]}`}, // in a user namespace
			{"", `{"containers":["c"],"hostNetwork":"true"}`},                                                  // no pod at all
			{`{"hostPID":true}`, plain},
		},
		leaves: []try{
			{request: "delete pods shop/web", live: `{"spec":{"hostPID":true}}`},
			{request: "get pods shop/web"},
		},
	},
	"guard:node-name": {
		deniesPods: []podTry{
			{"", `{"nodeName":"n1","containers":[{"name":"c"}]}`},
			{plain, `{"nodeName":"n1","containers":[{"name":"c"}]}`},
			{`{"nodeName":"n1","containers":[{"name":"c"}]}`, `{"nodeName":"n2","containers":[{"name":"c"}]}`},
		},
		leavesPods: []podTry{
			{`{"nodeName":"n1","containers":[{"name":"c"}]}`, `{"nodeName":"n1","containers":[{"name":"c2"}]}`},
			{`{"nodeName":"n1","containers":[{"name":"c"}]}`, plain},
			{"", `{"nodeName":"","nodeSelector":{"disk":"ssd"},"containers":[{"name":"c"}]}`},
		},
		denies: []try{ // the same node, of another pod
			{request: "apply websites.example.com shop/web", live: `{"a":{"nodeName":"n1","containers":[{}]},"b":{"containers":[{}]}}`,
				result: `{"a":{"nodeName":"n1","containers":[{}]},"b":{"nodeName":"n1","containers":[{}]}}`},
		},
	},
	"guard:pod-binding": {
		denies: []try{{request: "create pods/binding shop/web"}, {request: "create bindings shop/web"}},
		leaves: []try{{request: "create bindings.example.com shop/web", result: `{}`}, {request: "create pods/eviction shop/web"}, {request: "create pods shop/web", result: `{}`}},
	},
	"guard:volumes": {
		denies: []try{
			{request: "apply persistentvolumes pv"}, {request: "patch persistentvolumes pv", body: `{"metadata":{"labels":{"a":"b"}}}`},
			{request: "create storageclasses.storage.k8s.io shop/fast"}, {request: "apply csidrivers.storage.k8s.io shop/d"}, {request: "create volumeattachments.storage.k8s.io shop/a"},
		},
		leaves: []try{{request: "delete persistentvolumes pv"}, {request: "apply persistentvolumeclaims shop/a"}, {request: "get persistentvolumes pv"}},
	},
	"guard:system-pods": {
		denies: []try{
			{request: "create pods kube-system/a", result: `{"spec":{"containers":[{"name":"a","image":"i"}]}}`},
			{request: "patch deployments.apps kube-system/dns", live: `{"spec":{"template":{"spec":{"containers":[{"name":"a","image":"i"}]}}}}`,
				result: `{"spec":{"template":{"spec":{"containers":[{"name":"a","image":"i","command":["sh"]}]}}}}`},
			{request: "patch deployments.apps kube-system/dns", live: `{"spec":{"template":{"spec":{"containers":[{"name":"a","image":"i"}]}}}}`,
				result: `{"spec":{"template":{"spec":{"containers":[{"name":"a","image":"i"}],"initContainers":[{"name":"b","image":"i"}]}}}}`},
		},
		leaves: []try{
			{request: "patch deployments.apps kube-system/dns", live: `{"spec":{"replicas":1,"template":{"spec":{"containers":[{"name":"a","image":"i"}]}}}}`,
				result: `{"spec":{"replicas":2,"template":{"metadata":{"annotations":{"restarted":"now"}},"spec":{"containers":[{"name":"a","image":"i"}]}}}}`},
			{request: "create pods shop/a", result: `{"spec":{"containers":[{"name":"a","image":"i"}]}}`},
		},
	},
	"guard:system-config": {
		denies: []try{{request: "apply configmaps kube-system/aws-auth"}, {request: "patch configmaps kube-public/a", body: `{"data":{}}`}},
		leaves: []try{{request: "get configmaps kube-system/a"}, {request: "apply configmaps shop/a"}, {request: "delete configmaps kube-system/a"}},
	},
	"guard:service-account-swap": {
		deniesPods: []podTry{
			{"", `{"serviceAccountName":"admin"}`}, // of a kind that makes its containers itself
			{"", `{"serviceAccountName":"admin","containers":[{"name":"c"}]}`},
			{"", `{"serviceAccountName":"","serviceAccount":"admin","containers":[{"name":"c"}]}`}, // the field's old name
			{plain, `{"serviceAccountName":"admin","containers":[{"name":"c"}]}`},
			{`{"serviceAccountName":"web","containers":[{"name":"c"}]}`, `{"serviceAccountName":"admin","containers":[{"name":"c"}]}`},
			// The token that the pod did without.
			{`{"automountServiceAccountToken":false,"containers":[{"name":"c"}]}`, `{"automountServiceAccountToken":true,"containers":[{"name":"c"}]}`},
			{`{"automountServiceAccountToken":false,"containers":[{"name":"c"}]}`, plain},
			{plain, `{"automountServiceAccountToken":true,"containers":[{"name":"c"}]}`},
			// A token in a volume.
			{"", `{"containers":[{"name":"c"}],"volumes":[{"name":"t","projected":{"sources":[{"configMap":{"name":"a"}},{"serviceAccountToken":{"path":"t"}}]}}]}`},
			{plain, `{"containers":[{"name":"c"}],"volumes":[{"name":"t","projected":{"sources":[{"serviceAccountToken":{"path":"t"}}]}}]}`},
			{`{"containers":[{"name":"c"}],"volumes":[{"name":"t","projected":{"sources":[{"serviceAccountToken":{"path":"t"}}]}}]}`,
				`{"containers":[{"name":"c"}],"volumes":[{"name":"t","projected":{"sources":[{"serviceAccountToken":{"path":"t","audience":"vault"}}]}}]}`},
			{"", `{"containers":[{"name":"c"}],"volumes":[{"name":"t","projected":{"sources":[{"podCertificate":{"signerName":"kubernetes.io/kube-apiserver-client-pod"}}]}}]}`},
			// It calls itself what the API server calls its own.
			{"", `{"automountServiceAccountToken":false,"containers":[{"name":"c"}],"volumes":[{"name":"kube-api-access-x","projected":{"sources":[{"serviceAccountToken":{"path":"t"}}]}}]}`},
			{"", `{"containers":[{"name":"c"}],"volumes":[{"name":"kube-api-access-x","projected":{"sources":[{"serviceAccountToken":{"path":"t","audience":"vault"}}]}}]}`},
			{"", `{"containers":[{"name":"c"}],"volumes":[{"name":"kube-api-access-x","projected":{"sources":[{"podCertificate":{}}]}}]}`},
		},
		leavesPods: []podTry{
			{"", plain},
			{"", `{"serviceAccountName":"default","serviceAccount":"default","automountServiceAccountToken":true,"containers":[{"name":"c"}]}`},
			{`{"serviceAccountName":"web","serviceAccount":"web","containers":[{"name":"c"}]}`, `{"serviceAccountName":"web","serviceAccount":"web","containers":[{"name":"c2"}]}`},
			{`{"serviceAccountName":"web","containers":[{"name":"c"}]}`, plain},
			{plain, `{"automountServiceAccountToken":false,"containers":[{"name":"c"}]}`},
			{`{"automountServiceAccountToken":true,"containers":[{"name":"c"}]}`, plain},
			{`{"automountServiceAccountToken":false,"containers":[{"name":"c"}]}`, `{"automountServiceAccountToken":false,"containers":[{"name":"c2"}]}`},
			{`{"containers":[{"name":"c"}],"volumes":[{"name":"t","projected":{"sources":[{"serviceAccountToken":{"path":"t"}}]}}]}`,
				`{"containers":[{"name":"c2"}],"volumes":[{"name":"u","emptyDir":{}},{"name":"t","projected":{"sources":[{"serviceAccountToken":{"path":"t"}}]}}]}`},
			{"", `{"containers":[{"name":"c"}],"volumes":[{"name":"t","projected":{"sources":[{"configMap":{"name":"a"}},{"downwardAPI":{}}]}}]}`},
		},
		denies: []try{
			// The account of another pod of the same object.
			{request: "apply websites.example.com shop/web", live: `{"a":{"serviceAccountName":"a","containers":[{}]},"b":{"containers":[{}]}}`,
				result: `{"a":{"serviceAccountName":"a","containers":[{}]},"b":{"serviceAccountName":"a","containers":[{}]}}`},
			// In a template, nobody but the caller writes one.
			{request: "apply deployments.apps shop/web", result: `{"spec":{"template":{"spec":{"containers":[{"name":"c"}],"volumes":[{"name":"kube-api-access-x","projected":{"sources":[{"serviceAccountToken":{"path":"t"}}]}}]}}}}`},
		},
		leaves: []try{ // what the API server adds to every pod
			{request: "create pods shop/web", result: `{"spec":{"containers":[{"name":"c"}],"volumes":[{"name":"kube-api-access-x7f2q","projected":{"sources":[{"serviceAccountToken":{"expirationSeconds":3607,"path":"token"}},{"configMap":{"name":"kube-root-ca.crt"}}]}}]}}`},
		},
	},
	"guard:service-account-tokens": {
		denies: []try{{request: "create serviceaccounts/token shop/web"}},
		leaves: []try{{request: "create serviceaccounts shop/web"}, {request: "get serviceaccounts shop/web"}},
	},
	"guard:service-account-token-secrets": {
		denies: []try{
			{request: "create secrets shop/a", result: `{"type":"kubernetes.io/service-account-token"}`},
			{request: "apply secrets shop/a", result: `{"type":"kubernetes.io/service-account-token"}`},
			{request: "create secrets kube-system/bootstrap-token-abcdef", result: `{"type":"bootstrap.kubernetes.io/token"}`},
		},
		leaves: []try{
			{request: "create secrets shop/a", result: `{"type":"Opaque"}`}, {request: "create secrets shop/a", result: `{}`},
			{request: "delete secrets shop/a", live: `{"type":"kubernetes.io/service-account-token"}`},
		},
	},
	"guard:secret-references": {
		// Every way to name a Secret is in TestSecretReferences.
		deniesPods: []podTry{
			{"", `{"containers":[{"name":"c","envFrom":[{"prefix":"X_","secretRef":{"name":"db"}}]}]}`},
			{"", `{"volumes":[{"name":"v","secret":{"secretName":"db"}}]}`},
			{`{"containers":[{"name":"c","envFrom":[{"secretRef":{"name":"db"}}]}]}`, `{"containers":[{"name":"c","envFrom":[{"secretRef":{"name":"db2"}}]}]}`},
			{`{"imagePullSecrets":[{"name":"db"}],"containers":[{"name":"c"}]}`, `{"containers":[{"name":"c","envFrom":[{"secretRef":{"name":"db"}}]}]}`},
		},
		leavesPods: []podTry{
			{"", `{"imagePullSecrets":[{"name":"db"}],"containers":[{"name":"c","envFrom":[{"configMapRef":{"name":"db"}}]}]}`},
			{`{"containers":[{"name":"c","envFrom":[{"secretRef":{"name":"db"}}]}]}`,
				`{"containers":[{"name":"c2","env":[{"name":"X","valueFrom":{"secretKeyRef":{"name":"db","key":"k"}}}]}],"volumes":[{"name":"v","secret":{"secretName":"db"}}]}`},
			{`{"containers":[{"name":"c","envFrom":[{"secretRef":{"name":"db"}}]}]}`, plain},
		},
	},
	"guard:admission": {
		denies: []try{
			{request: "delete validatingwebhookconfigurations.admissionregistration.k8s.io shop/a"}, {request: "apply mutatingwebhookconfigurations.admissionregistration.k8s.io shop/a"},
			{request: "create validatingadmissionpolicybindings.admissionregistration.k8s.io shop/a"}, {request: "deletecollection validatingadmissionpolicies.admissionregistration.k8s.io shop/"},
			{request: "patch validatingadmissionpolicies.admissionregistration.k8s.io/status shop/a"},
		},
		leaves: []try{{request: "list validatingwebhookconfigurations.admissionregistration.k8s.io"}},
	},
	"guard:api-extensions": {
		denies: []try{
			{request: "apply apiservices.apiregistration.k8s.io shop/a"}, {request: "delete apiservices.apiregistration.k8s.io shop/a"},
			{request: "create customresourcedefinitions.apiextensions.k8s.io shop/a"}, {request: "delete customresourcedefinitions.apiextensions.k8s.io shop/a"},
			{request: "update customresourcedefinitions.apiextensions.k8s.io/status shop/a"},
		},
		leaves: []try{{request: "get customresourcedefinitions.apiextensions.k8s.io shop/a"}},
	},
	"guard:certificates": {
		denies: []try{
			{request: "create certificatesigningrequests.certificates.k8s.io shop/a"}, {request: "update certificatesigningrequests.certificates.k8s.io/approval shop/a"},
			{request: "patch certificatesigningrequests.certificates.k8s.io/status shop/a"}, {request: "apply clustertrustbundles.certificates.k8s.io shop/a"},
		},
		leaves: []try{{request: "get certificatesigningrequests.certificates.k8s.io shop/a"}, {request: "apply certificates.cert-manager.io shop/a", result: `{}`}},
	},
	"guard:service-accounts": {
		denies: []try{
			{request: "patch serviceaccounts shop/a", body: `{"automountServiceAccountToken":true}`},
			{request: "create serviceaccounts shop/a", body: `{"metadata":{"annotations":{"eks.amazonaws.com/role-arn":"x"}}}`},
			{request: "patch serviceaccounts shop/a", body: `[{"op":"replace","path":"/metadata","value":{}}]`},
		},
		leaves: []try{{request: "create serviceaccounts shop/a", body: `{"metadata":{"name":"a","labels":{"a":"b"}}}`}, {request: "delete serviceaccounts shop/a"}},
	},
	"guard:endpoints": {
		denies: []try{{request: "apply endpoints shop/a"}, {request: "create endpointslices.discovery.k8s.io shop/a"}},
		leaves: []try{{request: "get endpoints shop/a"}, {request: "delete endpoints shop/a"}},
	},
	"guard:external-ips": {
		denies: []try{
			{request: "create services shop/a", body: `{"spec":{"externalIPs":["10.0.0.1"]}}`}, {request: "patch services shop/a", body: `{"spec":null}`},
			{request: "patch services shop/a", body: `[{"op":"add","path":"/spec/externalIPs/-","value":"10.0.0.1"}]`},
		},
		leaves: []try{{request: "apply services shop/a", body: `{"spec":{"externalName":"x","ports":[]}}`}, {request: "delete services shop/a"}},
	},
	"guard:namespace-labels": {
		denies: []try{
			{request: "apply namespaces shop", body: `{"metadata":{"labels":{"a":"b","pod-security.kubernetes.io/enforce":"privileged"}}}`},
			{request: "patch namespaces shop", body: `{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":null}}}`},
			{request: "patch namespaces shop", body: `{"metadata":{"labels":{"pod-security.kubernetes.io/enforce-version":"v1.0"}}}`},
			{request: "patch namespaces shop", body: `{"metadata":{"labels":{"team":"shop"}}}`},
			{request: "patch namespaces shop", body: `{"metadata":{"labels":null}}`},
			{request: "patch namespaces shop", body: `{"metadata":null}`},
			{request: "patch namespaces shop", body: `[{"op":"remove","path":"/metadata/labels/pod-security.kubernetes.io~1enforce"}]`},
			{request: "patch namespaces shop", body: `[{"op":"replace","path":"/metadata/labels","value":{"a":"b"}}]`},
			{request: "patch namespaces shop", body: `[{"op":"move","from":"/metadata/labels/pod-security.kubernetes.io~1enforce","path":"/metadata/annotations/x"}]`},
			{request: "update namespaces shop", body: `{"metadata":{"labels":{"a":"b"}}}`},
		},
		leaves: []try{
			{request: "patch namespaces shop", body: `{"metadata":{"annotations":{"pod-security.kubernetes.io/enforce":"x"}}}`},
			{request: "apply namespaces shop", body: `{"metadata":{"name":"shop"}}`},
			{request: "create namespaces shop", body: `{"metadata":{"name":"shop"}}`},
			{request: "patch services shop/a", body: `{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"x"}}}`},
			{request: "delete namespaces shop"},
		},
	},
	"guard:proxy": {
		denies: []try{{request: "get pods/proxy shop/web"}, {request: "create services/proxy shop/web"}, {request: "get nodes/proxy n1"}},
		leaves: []try{{request: "get pods shop/web"}, {request: "get pods/log shop/web"}},
	},
	"guard:system-exec": {
		denies: []try{
			{request: "create pods/exec kube-system/etcd"}, {request: "get pods/exec kube-system/etcd"}, {request: "create pods/attach kube-flannel/a"},
			{request: "create pods/portforward kube-system/etcd"}, {request: "patch pods/ephemeralcontainers kube-system/etcd"},
		},
		leaves: []try{{request: "create pods/exec shop/web"}, {request: "create pods/exec my-kube-system/web"}, {request: "get pods/log kube-system/etcd"}},
	},
	"guard:ownership": {
		denies: []try{
			{request: "patch configmaps shop/a", body: `{"metadata":{"ownerReferences":[]}}`},
			{request: "apply configmaps shop/a", body: `{"metadata":{"finalizers":["x/y"]}}`},
			{request: "patch configmaps shop/a", body: `{"metadata":{"finalizers":null}}`},
			{request: "patch configmaps shop/a", body: `{"metadata":null}`},
			{request: "patch services/status shop/a", body: `{"metadata":{"finalizers":[]}}`},
			{request: "patch configmaps shop/a", body: `[{"op":"add","path":"/metadata/ownerReferences/0","value":{}}]`},
			{request: "patch configmaps shop/a", body: `[{"op":"remove","path":"/metadata/finalizers/0"}]`},
			{request: "patch configmaps shop/a", body: `[{"op":"replace","path":"","value":{}}]`},
			{request: "patch configmaps shop/a", body: `[{"op":"replace","path":"metadata/finalizers","value":[]}]`}, // the API server reads it all the same
			{request: "update configmaps shop/a", body: `{"data":{}}`},
			{request: "create configmaps shop/a", body: `{"metadata":{"ownerReferences":[{}]}}`},
			{request: "create configmaps shop/a", body: `{"metadata":{"finalizers":["x"]}}`},
		},
		leaves: []try{
			{request: "patch configmaps shop/a", body: `{"metadata":{"labels":{"a":"b"}},"data":{"metadata":"x"}}`},
			{request: "patch deployments.apps/scale shop/web", body: `{"metadata":{"finalizers":[]}}`}, // a Scale has none of its own
			{request: "delete configmaps shop/a"},
			{request: "patch configmaps shop/a", body: `[{"op":"test","path":"/metadata/finalizers","value":[]},{"op":"remove","path":"/data/x"}]`},
		},
	},
}

// rows are all of a guard's rows, the pods in every shape.
func rows(plain []try, pods []podTry) []try {
	out := slices.Clone(plain)
	for _, pod := range pods {
		for _, shape := range shapes {
			out = append(out, pod.in(shape.object, shape.request))
		}
	}
	return out
}

func TestGuards(t *testing.T) {
	all := guarded(t)
	without := map[string]*world{}
	for _, guard := range guardNames() {
		if guard == "guard:loop" {
			continue // a limit: TestLimits
		}
		if _, ok := guardTable[guard]; !ok {
			t.Errorf("%s has no row", guard)
		}
		without[guard] = guarded(t, guard)
	}
	for guard, row := range guardTable {
		t.Run(guard, func(t *testing.T) {
			if without[guard] == nil {
				t.Fatal("there is no such guard")
			}
			for _, row := range rows(row.denies, row.deniesPods) {
				d := all.try(row)
				if d.Effect != Deny || !slices.Contains(d.Rules, guard) {
					t.Errorf("%+v: not denied: %+v", row, d)
					continue
				}
				// Switched off by its name, it and nothing else is gone.
				for off, w := range without {
					want := slices.DeleteFunc(slices.Clone(d.Rules), func(name string) bool { return name == off })
					if len(want) == 0 {
						want = []string{"all"}
					}
					if got := w.try(row); got.Needs == 0 && !slices.Equal(got.Rules, want) {
						t.Errorf("%+v: without %s: %+v; want %v", row, off, got, want)
					}
				}
			}
			for _, row := range rows(row.leaves, row.leavesPods) {
				if strings.HasPrefix(row.request, "update ") && guard != "guard:ownership" {
					row.request = strings.Replace(row.request, "update", "create", 1) // of an update, nothing is left alone: guard:ownership
				}
				if d := all.try(row); d.Effect != Allow {
					t.Errorf("%+v: not left alone: %+v", row, d)
				}
			}
		})
	}
}

// What holds no pod template needs no preview on the guards' account, nor does
// what only scales; of other kinds, nobody knows before.
func TestGuardsNeedAPreviewOnlyForPods(t *testing.T) {
	w := guarded(t)
	for _, text := range []string{
		"apply configmaps shop/a", "apply persistentvolumeclaims shop/a", "patch nodes n1",
		"apply limitranges shop/a", "apply resourcequotas shop/a", "apply ingresses.networking.k8s.io shop/a", "apply poddisruptionbudgets.policy shop/a",
		"apply horizontalpodautoscalers.autoscaling shop/a", "apply leases.coordination.k8s.io shop/a",
		"patch deployments.apps/scale shop/web", "patch deployments.apps/status shop/web", "patch websites.example.com/scale shop/web",
		"create pods/eviction shop/web", "create pods/exec shop/web", "delete deployments.apps shop/web", "get pods shop/web", "list websites.example.com",
	} {
		if d := w.try(try{request: text}); d.Effect != Allow || d.Needs != 0 {
			t.Errorf("%s: %+v", text, d)
		}
	}
	for _, text := range []string{
		"apply pods shop/a", "patch deployments.apps shop/a", "create websites.example.com shop/a", "patch pods/ephemeralcontainers shop/a", "patch pods/resize shop/a",
		"apply verticalpodautoscalers.autoscaling.k8s.io shop/a", "apply things.acme.policy shop/a", "apply secrets shop/a", "apply services.example.com shop/a",
	} {
		if d := w.try(try{request: text}); d.Needs != NeedPreview {
			t.Errorf("%s: %+v; want a preview", text, d)
		}
	}
}

// Each check of the baseline standard, of the release that this server is built
// for, is seen and denied, in containers of all three kinds.
func TestPodSecurityBaseline(t *testing.T) {
	specs := map[psapolicy.CheckID]string{
		"appArmorProfile":            `{"LIST":[{"name":"c","securityContext":{"appArmorProfile":{"type":"Unconfined"}}}]}`,
		"capabilities_baseline":      `{"LIST":[{"name":"c","securityContext":{"capabilities":{"add":["SYS_ADMIN"]}}}]}`,
		"hostNamespaces":             `{"LIST":[{"name":"c"}],"hostIPC":true}`,
		"hostPathVolumes":            `{"LIST":[{"name":"c"}],"volumes":[{"name":"v","hostPath":{"path":"/"}}]}`,
		"hostPorts":                  `{"LIST":[{"name":"c","ports":[{"containerPort":80,"hostPort":80}]}]}`,
		"hostProbesAndHostLifecycle": `{"LIST":[{"name":"c","livenessProbe":{"httpGet":{"host":"169.254.169.254","port":80}}}]}`,
		"privileged":                 `{"LIST":[{"name":"c","securityContext":{"privileged":true}}]}`,
		"procMount":                  `{"LIST":[{"name":"c","securityContext":{"procMount":"Unmasked"}}]}`,
		"seLinuxOptions":             `{"LIST":[{"name":"c","securityContext":{"seLinuxOptions":{"type":"spc_t"}}}]}`,
		"seccompProfile_baseline":    `{"LIST":[{"name":"c","securityContext":{"seccompProfile":{"type":"Unconfined"}}}]}`,
		"sysctls":                    `{"LIST":[{"name":"c"}],"securityContext":{"sysctls":[{"name":"kernel.msgmax","value":"1"}]}}`,
		"windowsHostProcess":         `{"LIST":[{"name":"c","securityContext":{"windowsOptions":{"hostProcess":true}}}]}`,
	}
	w := guarded(t)
	for _, check := range psapolicy.DefaultChecks() {
		if check.Level != psa.LevelBaseline {
			continue
		}
		if specs[check.ID] == "" {
			t.Errorf("no pod fails %s", check.ID)
		}
		for _, list := range containerLists {
			spec := strings.Replace(specs[check.ID], "LIST", list, 1)
			if d := w.try(try{request: "apply deployments.apps shop/web", result: `{"spec":{"template":{"spec":` + spec + `}}}`}); !slices.Equal(d.Rules, []string{"guard:host-access"}) {
				t.Errorf("%s: %s: %+v", check.ID, spec, d)
			}
		}
	}
	// The annotations count that stand beside the pod's own spec.
	const profile = `{"annotations":{"container.apparmor.security.beta.kubernetes.io/c":"unconfined"}}`
	for object, want := range map[string]Effect{
		`{"metadata":` + profile + `,"spec":` + plain + `}`:                                       Deny,
		`{"spec":{"template":{"metadata":` + profile + `,"spec":` + plain + `}}}`:                 Deny,
		`{"metadata":` + profile + `,"spec":{"template":{"spec":` + plain + `}}}`:                 Allow,
		`{"spec":{"template":{"metadata":{"annotations":"x"},"spec":` + plain + `}}}`:             Deny, // unreadable
		`{"spec":{"template":{"metadata":{"creationTimestamp":null},"spec":` + plain + `}}}`:      Allow,
		`{"spec":{"template":{"metadata":{"annotations":{"a":"b"}},"spec":` + plain + `}}}`:       Allow,
		`{"spec":{"template":{"metadata":{"annotations":{"a":["b"]}},"spec":` + plain + `}}}`:     Deny,
		`{"spec":{"metadata":` + profile + `,"spec":{"metadata":{},"spec":` + plain + `}},"a":1}`: Allow,
	} {
		if d := w.try(try{request: "apply deployments.apps shop/web", result: object}); d.Effect != want {
			t.Errorf("%s: %+v; want %s", object, d, want)
		}
	}
}

// Guards are switched off by their names, in force at once, and by nothing else.
func TestGuardsOffMistakes(t *testing.T) {
	spec := strings.TrimSuffix(header, "  rules:\n")
	for _, row := range []mistakeRow{
		{"no such guard", spec + "  guardsOff: [guard:proxy, guard:proxi] <1>\n  rules: [{name: r, effect: allow}]", []string{`guardsOff: there is no guard "guard:proxi"`}},
		{"no guard", spec + "  guardsOff:\n  - r <1>\n  - all <2>\n  rules: [{name: r, effect: allow}]", []string{`guardsOff: there is no guard "r"`, `guardsOff: there is no guard "all"`}},
		{"not enforced", spec + "  mode: shadow\n  guardsOff: [guard:proxy] <1>\n  rules: [{name: r, effect: allow}]",
			[]string{`guardsOff takes effect at once: put it into a document in mode enforce`}},
		{"a rule that passes for one", header + "  - {name: guard:mine, effect: allow} <1>\n  - {name: guard:proxy, effect: allow} <2>\n", []string{
			`rule guard:mine: names that begin with "guard:" are those of the built-in guards`,
			`rule guard:proxy: names that begin with "guard:" are those of the built-in guards`,
		}},
		{"a limit that passes for one", header + "  - {name: r, effect: allow}\n  limits:\n  - {name: guard:loop, calls: 1, per: 1m} <1>\n",
			[]string{`limit guard:loop: names that begin with "guard:" are those of the built-in guards`}},
	} {
		row.run(t, Known{Approvers: approverSets})
	}
}
