package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"countersign/audit"
	"countersign/audit/anchors/witnesstest"
	"countersign/e2e/rig"
)

// The log is anchored in a file, in ConfigMaps, with the roles of docs/audit.md, and
// at a witness: when the server starts, and when it stops, after its last record.
// The server cannot take back what lies in the cluster.
func TestAnchors(t *testing.T) {
	s := prepareStage(t, "")
	page, err := os.ReadFile("../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	roles := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindSubmatch(page)
	if roles == nil {
		t.Fatal("docs/audit.md has no roles")
	}
	const namespace, accounts = "countersign-anchors", `{apiVersion: v1, kind: List, items: [
		{apiVersion: v1, kind: Namespace, metadata: {name: countersign}},
		{apiVersion: v1, kind: ServiceAccount, metadata: {name: anchor, namespace: countersign}},
		{apiVersion: v1, kind: ServiceAccount, metadata: {name: auditor, namespace: countersign}}]}`
	// The auditor is a service account here, and in the page a group.
	auditors := strings.Replace(string(roles[1]), "{kind: Group, name: auditors, apiGroup: rbac.authorization.k8s.io}", "{kind: ServiceAccount, name: auditor, namespace: countersign}", 1)
	for _, objects := range []string{accounts, auditors} {
		if _, err := world.cluster.Run(s.ctx, objects, "apply", "-f", "-"); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { leave(namespace) })
	dir := filepath.Dir(s.server.Config)
	kubeconfig := func(account string) string {
		token, err := world.cluster.Run(s.ctx, "", "create", "token", account, "-n", "countersign", "--duration", "1h")
		if err != nil {
			t.Fatal(err)
		}
		err = rig.WriteFiles(dir, map[string]string{account: fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c,
			clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}], users: [{name: u, user: {token: %q}}],
			contexts: [{name: c, context: {cluster: c, user: u}}]}`, world.cluster.Server, world.cluster.CA, token)})
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, account)
	}
	anchoring, auditor := kubeconfig("anchor"), kubeconfig("auditor")
	witness, err := witnesstest.Start("witness.example/w1")
	if err != nil {
		t.Fatal(err)
	}
	defer witness.Close()
	config, err := os.ReadFile(s.server.Config)
	if err != nil {
		t.Fatal(err)
	}
	anchored := func(cluster string) {
		t.Helper()
		text := strings.Replace(string(config), "clusters: [", fmt.Sprintf("clusters: [{name: vault, kubeconfig: %q}, ", anchoring), 1) + fmt.Sprintf(
			"audit: {anchors: {file: elsewhere, configMap: {cluster: %s, namespace: %s}, witnesses: [{url: %q, key: %q}]}}\n", cluster, namespace, witness.URL, witness.Key)
		if err := os.WriteFile(s.server.Config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s.start()
	}
	status := func() (text string) {
		t.Helper()
		s.eventually("the log is anchored", func() bool {
			out, err := s.server.Run(s.ctx, "status")
			text = fmt.Sprint(out, err)
			return strings.Contains(text, "elsewhere: ") && !strings.HasSuffix(text, "elsewhere: nothing yet\n<nil>")
		})
		return text
	}

	// What does not work is seen at once, and says what to do; the file has it.
	anchored("local")
	if text := status(); !strings.Contains(text, "anchor configmap:local/countersign-anchors: this server's credential for cluster local may delete configmaps, deletecollection configmaps, delete namespaces") ||
		!strings.Contains(text, "anchor witness:witness.example/w1: the witness does not know this log (404): give its public key, audit.pub") {
		t.Error(text)
	}
	public, err := os.ReadFile(filepath.Join(dir, "data", "audit.pub"))
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(string(public)))
	if err != nil {
		t.Fatal(err)
	}
	witness.Know(verifier)
	if err := s.server.Stop(); err != nil {
		t.Fatal(err)
	}

	data, older := filepath.Join(dir, "data"), filepath.Join(dir, "older")
	if out, err := exec.CommandContext(s.ctx, "cp", "-a", data, older).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	anchored("vault")
	if text := status(); strings.Contains(text, "error") || !strings.HasSuffix(text, "<nil>") {
		t.Error(text)
	}
	s.connect()
	if _, err := s.agent.Call(s.ctx, "list_resources", fmt.Sprintf(`{"cluster":"local","kind":"deploy","namespace":%q}`, s.namespace)); err != nil {
		t.Fatal(err)
	}
	if err := s.server.Stop(); err != nil {
		t.Fatal(err)
	}
	records, err := s.server.Export(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	last := records[len(records)-1]
	var r audit.Record
	if err := json.Unmarshal([]byte(last.Raw), &r); err != nil || r.Type != audit.LogCheckpoint || r.Checkpoint == nil {
		t.Fatalf("%s, %v", last.Raw, err)
	}
	if before := records[len(records)-2]; r.Checkpoint.Size != before.Seq || before.Type != audit.SessionEnded || len(r.Checkpoint.Anchors) != 3 || len(r.Checkpoint.Failed) != 0 {
		t.Errorf("%s\nafter\n%s", last.Raw, before.Raw)
	}
	if seen := witness.Seen(verifier.Name()); seen != int64(r.Checkpoint.Size) {
		t.Errorf("the witness has seen %d", seen)
	}

	// All of it can be read back, by an auditor without the server's configuration.
	fromFile, err := s.server.Run(s.ctx, "audit", "checkpoints")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(s.ctx, world.binary, "audit", "checkpoints", "--kubeconfig", auditor, "--namespace", namespace)
	cmd.Dir = t.TempDir()
	fromCluster, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v", fromCluster, err)
	}
	sizes := func(text string) (sizes []uint64) {
		t.Helper()
		for _, signed := range audit.Checkpoints([]byte(text)) {
			c, err := audit.OpenCheckpoint(signed, verifier)
			if err != nil {
				t.Errorf("%q: %v", signed, err)
			}
			sizes = append(sizes, c.Size)
		}
		return sizes
	}
	inFile, inCluster := sizes(fromFile), sizes(string(fromCluster))
	// The first start put its own into the file alone; whether it stopped with another one
	// hangs on when it found out which clusters there are.
	if n := len(inFile) - len(inCluster); n < 1 || n > 2 || len(inCluster) != 2 || !slices.Equal(inFile[n:], inCluster) || inCluster[1] != r.Checkpoint.Size {
		t.Errorf("file %d, cluster %d", inFile, inCluster)
	}
	for _, text := range []string{fromFile, string(fromCluster)} {
		if !strings.HasSuffix(text, "\n\n"+r.Checkpoint.Note+"\n") || !strings.Contains(r.Checkpoint.Note, "\n— witness.example/w1 ") {
			t.Errorf("%s\nwant at its end\n%s", text, r.Checkpoint.Note)
		}
	}

	verify := func() (string, error) {
		return s.server.Run(s.ctx, "audit", "verify", "--checkpoint", filepath.Join(dir, "elsewhere"))
	}
	if out, err := verify(); err != nil {
		t.Errorf("%s%v", out, err)
	}

	// The server's credential can do nothing more there, and nobody changes one.
	names, err := world.cluster.Run(s.ctx, "", "get", "configmaps", "-n", namespace, "-l", "countersign/anchor=checkpoint", "-o", "name")
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Fields(names)[1]
	if want := fmt.Sprintf("configmap/countersign-checkpoint-%020d-", r.Checkpoint.Size); !strings.HasPrefix(name, want) {
		t.Errorf("%s, want %s", name, want)
	}
	const patch = `{"data":{"checkpoint":"another"}}`
	for _, args := range [][]string{
		{"delete", name}, {"delete", "configmaps", "--all"}, {"delete", "namespace", namespace}, {"patch", name, "-p", patch}, {"label", name, "a=b"},
		{"get", name}, {"get", "configmaps"}, {"create", "secret", "generic", "one"},
	} {
		cmd := exec.CommandContext(s.ctx, world.cluster.Kubectl, append([]string{"--kubeconfig", anchoring, "-n", namespace}, args...)...)
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "forbidden") {
			t.Errorf("%s: %s, %v", args, out, err)
		}
	}
	if _, err := world.cluster.Run(s.ctx, "", "patch", name, "-n", namespace, "-p", patch); err == nil || !strings.Contains(err.Error(), "immutable") {
		t.Errorf("an administrator's change: %v", err)
	}
	if out, err := s.server.Run(s.ctx, "audit", "checkpoints", "--kubeconfig", anchoring, "--namespace", namespace); err == nil || !strings.Contains(err.Error(), "cannot list resource") {
		t.Errorf("the server's own credential reads them: %s, %v", out, err)
	}

	// The data folder put back to what it was before: in itself it is good.
	if err := errors.Join(os.RemoveAll(data), os.Rename(older, data)); err != nil {
		t.Fatal(err)
	}
	anchored("vault")
	if text := status(); !strings.Contains(text, fmt.Sprintf("the file has a checkpoint of %d records, and the log has ", r.Checkpoint.Size)) ||
		!strings.Contains(text, fmt.Sprintf("the witness has seen %d records of this log, which has ", r.Checkpoint.Size)) {
		t.Error(text)
	}
	if out, err := verify(); err == nil || !strings.Contains(err.Error(), "the log is not as it was signed") {
		t.Errorf("%s%v", out, err)
	}
	if err := s.server.Stop(); err != nil {
		t.Fatal(err)
	}
}
