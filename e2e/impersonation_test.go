package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"countersign/action"
	"countersign/e2e/rig"
	"countersign/gate"
	"countersign/kube"
)

// asCaller is what a server needs that acts as the service account agents/acting,
// whose tokens agents/minter may ask for and nothing else, and that the cluster is to
// see agents/oncall behind. None of them has any right but those that stand here.
const asCaller = `{apiVersion: v1, kind: List, items: [
	{apiVersion: v1, kind: ServiceAccount, metadata: {name: minter, namespace: agents}},
	{apiVersion: v1, kind: ServiceAccount, metadata: {name: acting, namespace: agents}},
	{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: minter, namespace: agents},
		rules: [{apiGroups: [""], resources: [serviceaccounts/token], verbs: [create], resourceNames: [acting]}]},
	{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: minter, namespace: agents},
		roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: minter}, subjects: [{kind: ServiceAccount, name: minter, namespace: agents}]},
	{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: acting, namespace: agents},
		rules: [{apiGroups: [""], resources: [serviceaccounts], verbs: [impersonate], resourceNames: [oncall]}]},
	{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: acting, namespace: agents},
		roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: acting}, subjects: [{kind: ServiceAccount, name: acting, namespace: agents}]},
	{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: agent, namespace: %[1]q}, rules: [
		{apiGroups: [apps], resources: [deployments, deployments/scale], verbs: [get, patch]},
		{apiGroups: [""], resources: [pods], verbs: [get]}, {apiGroups: [""], resources: [pods/exec], verbs: [get, create]}]},
	{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: agent, namespace: %[1]q},
		roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: agent}, subjects: [{kind: ServiceAccount, name: oncall, namespace: agents}]},
	{apiVersion: v1, kind: Pod, metadata: {name: one, namespace: %[1]q}, spec: {containers: [{name: app, image: "registry.example/app:1"}]}}]}`

const (
	oncall = "system:serviceaccount:agents:oncall"
	acting = "system:serviceaccount:agents:acting"
)

// minterKubeconfig prepares all that for a namespace.
func minterKubeconfig(t *testing.T, namespace, dir string) string {
	t.Helper()
	ctx := t.Context()
	if _, err := world.cluster.Run(ctx, fmt.Sprintf(asCaller, namespace), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	mint, err := token(ctx, "minter", world.cluster.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}],
users: [{name: minter, user: {token: %q}}], contexts: [{name: c, context: {cluster: c, user: minter}}]}`, world.cluster.Server, world.cluster.CA, mint)
	if err := rig.WriteFiles(dir, map[string]string{"minter.kubeconfig": text}); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "minter.kubeconfig")
}

// seen is a line of the API server's audit log.
type seen struct {
	AuditID string `json:"auditID"`
	Verb    string `json:"verb"`
	URI     string `json:"requestURI"`
	User    struct {
		Username string              `json:"username"`
		Extra    map[string][]string `json:"extra"`
	} `json:"user"`
	Impersonated *struct {
		Username string              `json:"username"`
		Groups   []string            `json:"groups"`
		Extra    map[string][]string `json:"extra"`
	} `json:"impersonatedUser"`
	Response struct {
		Code int `json:"code"`
	} `json:"responseStatus"`
}

// auditLog gives the lines of the API server's audit log whose Audit-ID begins so.
func auditLog(t testing.TB, begins string) (lines []seen) {
	t.Helper()
	file, err := os.Open(world.cluster.AuditLog)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var line seen
		if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(line.AuditID, begins) {
			lines = append(lines, line)
		}
	}
	return lines
}

// The cluster's RBAC applies to the agent: what policy allows and the agent's role
// does not is refused, in words that say which of the two it was. The audit log of
// the API server shows who acted and for whom, in every request of every call: a
// read, a change, dry runs, what was approved, a command.
func TestImpersonation(t *testing.T) {
	s := prepareStage(t, `
  rules:
  - {name: reads, effect: allow, match: {verbs: [get, list]}}
  - {name: scale, effect: allow, match: {tools: [scale_deployment]}}
  - {name: ask, effect: require_approval, match: {tools: [restart_rollout], verbs: [patch]}, approval: {approvers: [operators]}}
  - {name: commands, effect: allow, match: {tools: [exec_in_pod], verbs: [create], resources: [pods], subresources: [exec]}}
  - {name: deletions, effect: allow, match: {tools: [delete_resource]}}
`)
	kubeconfig := minterKubeconfig(t, s.namespace, t.TempDir())
	err := rig.Replace(s.server.Config, fmt.Sprintf("kubeconfig: %q", s.proxy.Kubeconfig),
		fmt.Sprintf("kubeconfig: %q, serviceAccount: agents/acting, impersonate: {serviceAccountIssuer: %q}", kubeconfig, world.cluster.Issuer))
	if err != nil {
		t.Fatal(err)
	}
	s.start()
	t.Cleanup(func() {
		if err := s.server.Stop(); err != nil {
			t.Error(err)
		}
	})
	s.connect()
	if _, err := world.cluster.Run(s.ctx, "", "wait", "-n", s.namespace, "--for=condition=Ready", "pod/one"); err != nil {
		t.Fatal(err)
	}

	var ops []string
	call := func(tool, arguments string, want ...string) rig.Answer {
		t.Helper()
		answer, err := s.agent.Call(s.ctx, tool, strings.ReplaceAll(arguments, "NS", s.namespace))
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range want {
			if !strings.Contains(answer.Text, text) {
				t.Errorf("%s: %s\nwant %s", tool, answer.Text, text)
			}
		}
		return answer
	}
	did := func(answer rig.Answer) {
		t.Helper()
		if answer.Structured.Op == "" {
			t.Fatalf("no operation: %s", answer.Text)
		}
		ops = append(ops, answer.Structured.Op)
	}
	if answer := call("get_resource", `{"kind":"deploy","namespace":"NS","name":"web"}`, "registry.example/web:1.0"); answer.IsError {
		t.Error("a read of what it may read is refused")
	}
	did(call("scale_deployment", `{"namespace":"NS","name":"web","replicas":3}`, "succeeded"))
	if s.replicas() != "3" {
		t.Errorf("%s replicas", s.replicas())
	}
	did(call("exec_in_pod", `{"namespace":"NS","pod":"one","command":["echo","hello"]}`, "hello"))
	waits := call("restart_rollout", `{"kind":"deployment","namespace":"NS","name":"web"}`, "pending_approval")
	did(waits)
	if _, err := s.server.Run(s.ctx, "approvals", "approve", waits.Structured.Op); err != nil {
		t.Fatal(err)
	}
	call("wait_for_operation", fmt.Sprintf(`{"op":%q}`, waits.Structured.Op), "succeeded")

	// Neither the server's own roles nor policy help it here.
	rbac := fmt.Sprintf(`the cluster's RBAC refused it to you, who are its user %q`, oncall)
	for _, row := range [][2]string{
		{"list_resources", `{"kind":"configmaps","namespace":"NS"}`},
		{"get_resource", `{"kind":"serviceaccount","namespace":"agents","name":"oncall"}`},
		{"delete_resource", `{"kind":"deployment","namespace":"NS","name":"web","reason":"tidy up"}`},
		{"scale_deployment", `{"namespace":"default","name":"web","replicas":3}`},
	} {
		answer := call(row[0], row[1], rbac, "cannot")
		if !answer.IsError {
			t.Errorf("%s was done", row[0])
		}
		did(answer)
	}

	var verbs []string
	for _, op := range ops {
		var lines []seen
		s.eventually("the API server has written it down", func() bool {
			lines = auditLog(t, op)
			return len(lines) > 0
		})
		for _, line := range lines {
			verbs = append(verbs, line.Verb)
			if line.User.Username != acting || line.Impersonated == nil || line.Impersonated.Username != oncall ||
				!slices.Contains(line.Impersonated.Groups, "system:serviceaccounts:agents") || slices.Contains(line.Impersonated.Groups, "system:masters") {
				t.Errorf("the audit log shows %+v, impersonated %+v", line, line.Impersonated)
			}
		}
	}
	if !slices.Contains(verbs, "delete") || !slices.Contains(verbs, "patch") || len(verbs) < len(ops)+3 {
		t.Errorf("the audit log has %v of these operations", verbs)
	}

	status, err := s.server.Run(s.ctx, "status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		world.cluster.Server + ": reachable, as " + acting + "; impersonates the callers", "service account agents/acting, token until 2",
		", asked for with kubeconfig user minter, service account agents/minter, token until 2", "0 operations for approval", "record ",
	} {
		if !strings.Contains(status, want) {
			t.Errorf("status says\n%s\nwant %s", status, want)
		}
	}
}

// A token is replaced by another before it is over, and requests go on.
func TestTokenRequest(t *testing.T) {
	ctx := t.Context()
	name, err := newNamespace(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { leave(name) })
	var jump atomic.Bool // lets two hours pass for one look at the clock
	clusters, err := kube.New([]kube.Config{{
		Name: "local", Kubeconfig: minterKubeconfig(t, name, t.TempDir()), ServiceAccount: "agents/acting",
		Impersonate: &kube.Impersonate{ServiceAccountIssuer: world.cluster.Issuer},
		Now: func() time.Time {
			if jump.CompareAndSwap(true, false) {
				return time.Now().Add(2 * time.Hour)
			}
			return time.Now()
		},
	}}, "test", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	caller := &action.Principal{Issuer: world.cluster.Issuer, Subject: oncall, Username: oncall}
	id := fmt.Sprintf("token-%d", time.Now().UnixNano())
	read := func(n int) {
		t.Helper()
		get := action.Action{Cluster: "local", Verb: action.Get, Resource: action.Resource{Group: "apps", Version: "v1", Resource: "deployments", Namespaced: true}, Namespace: name, Name: "web"}
		if _, err := clusters.Execute(ctx, caller, get, fmt.Sprintf("%s.%d", id, n), gate.Live{}); err != nil {
			t.Error(err)
		}
	}
	// Which credential each request was sent with, as the API server knows it.
	used := func() (credentials []string) {
		for _, line := range auditLog(t, id) {
			credentials = append(credentials, strings.Join(line.User.Extra["authentication.kubernetes.io/credential-id"], ","))
		}
		return slices.Compact(credentials)
	}
	read(1)
	read(2)
	expires := clusters.Status(ctx)[0].Expires
	if d := time.Until(expires); d < 50*time.Minute || d > 70*time.Minute {
		t.Errorf("the token expires in %s", d)
	}
	time.Sleep(time.Second) // the API server counts in these, and is to give another end
	jump.Store(true)
	read(3)
	deadline, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for len(used()) < 2 && deadline.Err() == nil {
		time.Sleep(20 * time.Millisecond)
	}
	if got := used(); len(got) != 2 || got[0] == "" || got[0] == got[1] {
		t.Errorf("the requests were sent with %q", got)
	}
	if got := clusters.Status(ctx)[0].Expires; !got.After(expires) {
		t.Errorf("after the renewal it expires at %s, before at %s", got, expires)
	}
}

// A user from another issuer arrives under its prefix with all that is to be shown,
// whatever alphabet it is written in.
func TestImpersonatedExtras(t *testing.T) {
	clusters, err := kube.New([]kube.Config{{
		Name: "local", Kubeconfig: world.cluster.Kubeconfig,
		Impersonate: &kube.Impersonate{UsernamePrefix: "idp:", GroupsPrefix: "idp:", Extra: []string{kube.ExtraOnBehalfOf, kube.ExtraClient, kube.ExtraIssuer}},
	}}, "test", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	caller := &action.Principal{Issuer: "https://idp.example.com", Subject: "1", Username: "jörg", Groups: []string{"CN=SRE,OU=日本", "kubeadm:cluster-admins"}, Client: "bot & co", OnBehalfOf: "bea@example.com"}
	id := fmt.Sprintf("extras-%d", time.Now().UnixNano())
	get := action.Action{Cluster: "local", Verb: action.List, Resource: action.Resource{Version: "v1", Resource: "secrets", Namespaced: true}, Namespace: "kube-system"}
	_, err = clusters.Execute(t.Context(), caller, get, id, gate.Live{})
	var refused *gate.APIError
	if !errors.As(err, &refused) || refused.User != "idp:jörg" {
		t.Errorf("got %v", err)
	}
	lines := auditLog(t, id)
	for len(lines) == 0 && t.Context().Err() == nil {
		time.Sleep(20 * time.Millisecond)
		lines = auditLog(t, id)
	}
	who := lines[0].Impersonated
	if who == nil {
		t.Fatal("nobody is impersonated")
	}
	slices.Sort(who.Groups)
	got := fmt.Sprint(who.Username, who.Groups, who.Extra)
	if want := "idp:jörg[idp:CN=SRE,OU=日本 idp:kubeadm:cluster-admins system:authenticated] map[countersign/client:[bot & co] countersign/issuer:[https://idp.example.com] countersign/on-behalf-of:[bea@example.com]]"; got != want {
		t.Errorf("the audit log shows %s; want %s", got, want)
	}
}

// What docs/clusters.md gives to apply is what a cluster takes.
func TestClustersPage(t *testing.T) {
	page, err := os.ReadFile("../docs/clusters.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindAllSubmatch(page, -1)
	if len(blocks) < 3 {
		t.Errorf("%d manifests", len(blocks))
	}
	for _, block := range blocks {
		if _, err := world.cluster.Run(t.Context(), string(block[1]), "apply", "--dry-run=client", "--validate=strict", "-f", "-"); err != nil {
			t.Errorf("%s\n%v", block[1], err)
		}
	}
}
