// Command demo shows the whole job: it starts a control plane and Countersign,
// lets an agent read, change, be refused and wait for a person, reads it all back
// from the audit log, and repeats it in a second control plane. With --keep it leaves both running instead, and
// prints what to paste into an agent's configuration. With --slack people are
// asked in Slack, or in a double of it.
//
// With KUBECONFIG set it uses that cluster instead of a local control plane.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"countersign/e2e/rig"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, progress io.Writer) (err error) {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	keep := flags.Bool("keep", false, "leave it running and print how to connect an agent")
	slack := flags.String("slack", "", "ask in Slack: fake for a double, or a file with the sections slack and approvers")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "countersign-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	d := &demo{dir: dir, out: out}
	defer func() { err = errors.Join(err, d.stop()) }()
	if *slack != "" {
		if d.chat, err = newChat(*slack, dir); err != nil {
			return err
		}
	}
	if err := d.start(ctx, progress); err != nil {
		return err
	}
	if *keep {
		d.tell()
		<-ctx.Done()
		return nil
	}
	return d.play(ctx)
}

type demo struct {
	dir     string
	out     io.Writer
	cluster *rig.ControlPlane
	issuer  *rig.Issuer // only with an existing cluster
	server  *rig.Server
	agent   *rig.Agent
	chat    *chat // only with Slack
}

// objects are what the demo works on.
const objects = `
apiVersion: v1
kind: Namespace
metadata: {name: agents}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: oncall, namespace: agents}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "registry.example/web:1.0"}]}
`

func (d *demo) start(ctx context.Context, progress io.Writer) (err error) {
	address, err := rig.FreeAddress()
	if err != nil {
		return err
	}
	url := "http://" + address + "/mcp"
	existing := os.Getenv("KUBECONFIG")
	if existing != "" {
		d.cluster, err = rig.ExistingCluster(existing)
	} else {
		d.cluster, err = rig.StartControlPlane(ctx, d.dir, url, progress)
	}
	if err != nil {
		return err
	}
	if _, err := d.cluster.Run(ctx, objects, "apply", "-f", "-"); err != nil {
		return err
	}
	var token, issuer string
	if existing != "" {
		if d.issuer, err = rig.StartIssuer(); err != nil {
			return err
		}
		issuer = fmt.Sprintf("{url: %q, groupsClaim: groups}", d.issuer.URL)
		token, err = d.issuer.Token(map[string]any{"sub": "oncall", "aud": url, "groups": []string{"agents"}})
	} else {
		issuer = fmt.Sprintf("{url: %q, caFile: %q, kubernetes: true}", d.cluster.Issuer, d.cluster.CA)
		token, err = d.cluster.Run(ctx, "", "create", "token", "oncall", "-n", "agents", "--audience", url, "--duration", "24h")
	}
	if err != nil {
		return err
	}
	policy, err := filepath.Abs("configs/policy/guarded")
	if err != nil {
		return err
	}
	approvers := `approvers: {operators: {local: ["*"]}}`
	if d.chat != nil {
		approvers = d.chat.config
	}
	config := fmt.Sprintf(`
listen: %s
url: %s
data: data
policy: %q
issuers: [%s]
clusters: [{name: local, kubeconfig: %q}]
approvals: {wait: 2s}
%s
`, address, url, policy, issuer, d.cluster.Kubeconfig, approvers)
	if err := rig.WriteFiles(d.dir, map[string]string{"countersign.yaml": config}); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(d.dir, "countersign.log"))
	if err != nil {
		return err
	}
	d.server = &rig.Server{Binary: "bin/countersign", Config: filepath.Join(d.dir, "countersign.yaml"), URL: url, Log: log}
	if err := d.server.Start(ctx); err != nil {
		return err
	}
	d.agent = &rig.Agent{URL: url, Token: token}
	return nil
}

func (d *demo) stop() error {
	var errs []error
	if d.server != nil {
		errs = append(errs, d.server.Stop())
	}
	d.chat.close()
	if d.issuer != nil {
		errs = append(errs, d.issuer.Close())
	}
	if d.cluster != nil {
		errs = append(errs, d.cluster.Close())
	}
	return errors.Join(errs...)
}

// step prints a headline; show prints what came back, indented.
func (d *demo) step(format string, args ...any) { fmt.Fprintf(d.out, "\n== "+format+"\n", args...) }

func (d *demo) show(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n ")) {
		fmt.Fprintln(d.out, "   "+strings.TrimSuffix(line, "\n"))
	}
}

// call makes a call as the agent and expects its status; reads have none.
func (d *demo) call(ctx context.Context, tool, arguments, status string) (rig.Answer, error) {
	fmt.Fprintf(d.out, "   agent calls %s %s\n", tool, arguments)
	answer, err := d.agent.Call(ctx, tool, arguments)
	// People take longer than a call waits.
	for err == nil && tool == "wait_for_operation" && answer.Structured.Status == "pending_approval" {
		answer, err = d.agent.Call(ctx, tool, arguments)
	}
	if err != nil {
		return answer, err
	}
	d.show(answer.Text)
	if answer.Structured.Status != status {
		return answer, fmt.Errorf("%s answered %q instead of %q", tool, answer.Structured.Status, status)
	}
	return answer, nil
}

func (d *demo) play(ctx context.Context) error {
	if err := d.agent.Connect(ctx); err != nil {
		return err
	}
	pod := d.pod(ctx) // so that there is something to read
	d.step("The agent reads")
	if _, err := d.call(ctx, "list_resources", `{"kind":"deploy","namespace":"shop"}`, ""); err != nil {
		return err
	}
	if _, err := d.call(ctx, "get_pod_logs", `{"namespace":"shop","pod":"`+pod+`","tail_lines":2}`, ""); err != nil {
		return err
	}

	d.step("A small change is allowed")
	if _, err := d.call(ctx, "scale_deployment", `{"namespace":"shop","name":"web","replicas":5,"reason":"load is up"}`, "succeeded"); err != nil {
		return err
	}
	if err := d.expect(ctx, "5", "get", "deployment", "web", "-n", "shop", "-o", "jsonpath={.status.readyReplicas}"); err != nil {
		return err
	}

	d.step("A delete is refused, and says by which rule")
	if _, err := d.call(ctx, "delete_resource", `{"kind":"namespace","name":"shop"}`, "denied"); err != nil {
		return err
	}
	if err := d.expect(ctx, "Active", "get", "namespace", "shop", "-o", "jsonpath={.status.phase}"); err != nil {
		return err
	}

	d.step("Another change waits for a person")
	manifest := `{"namespace":"shop","reason":"roll out 1.1","manifest":"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}}\n    spec: {containers: [{name: web, image: 'registry.example/web:1.1'}]}\n","force":true}`
	pending, err := d.call(ctx, "apply_manifest", manifest, "pending_approval")
	if err != nil {
		return err
	}
	if d.chat != nil {
		err = d.chat.play(ctx, d, pending.Structured.Op)
	} else {
		err = d.approve(ctx, pending.Structured.Op)
	}
	if err != nil {
		return err
	}
	if err := d.log(ctx); err != nil {
		return err
	}
	export, err := d.verify(ctx)
	if err != nil {
		return err
	}
	if err := d.simulate(ctx, export); err != nil {
		return err
	}
	return d.replay(ctx)
}

// approve decides on the command line, over the admin socket.
func (d *demo) approve(ctx context.Context, op string) error {
	d.step("An operator looks at it and approves")
	for _, args := range [][]string{
		{"approvals", "list"},
		{"approvals", "show", op},
		{"approvals", "approve", op, "--reason", "1.1 is tested"},
	} {
		if err := d.run(ctx, args...); err != nil {
			return err
		}
	}
	return d.rolledOut(ctx, op)
}

// run runs a command of countersign and shows what it prints.
func (d *demo) run(ctx context.Context, args ...string) error {
	text, err := d.server.Run(ctx, args...)
	if err != nil {
		return err
	}
	fmt.Fprintln(d.out, "   $ countersign "+strings.Join(args, " "))
	d.show(text)
	return nil
}

// rolledOut waits until what was approved has run.
func (d *demo) rolledOut(ctx context.Context, op string) error {
	d.step("It ran; the agent did not have to ask again")
	if _, err := d.call(ctx, "wait_for_operation", `{"op":"`+op+`"}`, "succeeded"); err != nil {
		return err
	}
	return d.expect(ctx, "registry.example/web:1.1", "get", "deployment", "web", "-n", "shop", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
}

// pod is the name of a pod that runs.
func (d *demo) pod(ctx context.Context) string {
	for {
		name, err := d.cluster.Run(ctx, "", "get", "pods", "-n", "shop", "-l", "app=web", "--field-selector", "status.phase=Running", "-o", "jsonpath={.items[0].metadata.name}")
		if err == nil && name != "" || ctx.Err() != nil {
			return name
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// expect waits until kubectl, which does not go through Countersign, says so too.
func (d *demo) expect(ctx context.Context, want string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		got, err := d.cluster.Run(ctx, "", args...)
		if err == nil && got == want {
			fmt.Fprintf(d.out, "   kubectl %s: %s\n", strings.Join(args, " "), got)
			return nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("kubectl %s says %q instead of %q (%w)", strings.Join(args, " "), got, want, errors.Join(err, ctx.Err()))
		}
	}
}

// log exports the audit log and joins it with the API server's own.
func (d *demo) log(ctx context.Context) error {
	d.step("The audit log has all of it")
	records, err := d.server.Export(ctx)
	if err != nil {
		return err
	}
	var sent []string
	for i, r := range records {
		if r.Seq != uint64(i)+1 {
			return fmt.Errorf("record %d follows record %d: one is missing", r.Seq, i)
		}
		line := fmt.Sprintf("%3d %-18s %-8s", r.Seq, r.Type, r.Outcome)
		if r.Tool != nil {
			line += " " + r.Tool.Name
		}
		if r.Policy != nil && r.Policy.Decision != "" {
			line += " " + r.Policy.Decision + " by " + strings.Join(r.Policy.Rules, ", ")
		}
		line += grantOf(r)
		for _, a := range r.Actions {
			line += fmt.Sprintf(" [%s %s %s/%s]", a.Verb, a.Resource, a.Namespace, a.Name)
			if r.Type == "exec.outcome" && a.AuditID != "" {
				sent = append(sent, a.AuditID)
			}
		}
		d.show(line)
	}
	if d.cluster.AuditLog == "" {
		return nil // not ours to read
	}
	cluster, err := os.ReadFile(d.cluster.AuditLog)
	if err != nil {
		return err
	}
	for _, id := range sent {
		if !strings.Contains(string(cluster), id) {
			return fmt.Errorf("the cluster's own audit log does not hold Audit-ID %s", id)
		}
	}
	d.step("All %d requests that the log says were sent stand in the API server's own audit log, under the same Audit-IDs", len(sent))
	return nil
}

// verify checks an export as a stranger would, and then one in which a word was changed.
func (d *demo) verify(ctx context.Context) (export string, err error) {
	d.step("Anybody can check that the log was not edited")
	export = filepath.Join(d.dir, "audit.jsonl")
	checkpoint, key := filepath.Join(d.dir, "audit.checkpoint"), filepath.Join(d.dir, "data", "audit.pub")
	text, err := d.server.Run(ctx, "audit", "export", "--checkpoint", checkpoint)
	if err != nil {
		return "", err
	}
	const command = "   $ countersign audit verify audit.jsonl --checkpoint audit.checkpoint --key audit.pub"
	for _, edit := range []struct{ from, to string }{{"denied", "allows"}, {"", ""}} {
		if err := os.WriteFile(export, []byte(strings.Replace(text, edit.from, edit.to, 1)), 0o600); err != nil {
			return "", err
		}
		if edit.from != "" {
			fmt.Fprintln(d.out, "   $ sed -i '0,/denied/s//allows/' audit.jsonl")
		} else {
			fmt.Fprintln(d.out, "   and as it was:")
		}
		fmt.Fprintln(d.out, command)
		found, err := d.server.Run(ctx, "audit", "verify", export, "--checkpoint", checkpoint, "--key", key)
		switch {
		case edit.from == "" && err != nil:
			return "", err
		case edit.from != "" && err == nil:
			return "", errors.New("an edited log was verified")
		case edit.from != "":
			_, said, _ := strings.Cut(err.Error(), "exit status 1: ")
			found = said + "\n"
		}
		d.show(found)
	}
	return export, nil
}

// simulate asks the production policy about what was recorded under another.
func (d *demo) simulate(ctx context.Context, export string) error {
	d.step("What the production policy would have decided otherwise")
	text, err := d.server.Run(ctx, "policy", "simulate", "--log", export, "--policy", "configs/policy/production")
	if err != nil {
		return err
	}
	fmt.Fprintln(d.out, "   $ countersign policy simulate --log audit.jsonl --policy configs/policy/production")
	d.show(text)
	return nil
}

// replay repeats what the agent changed in a second, empty control plane.
func (d *demo) replay(ctx context.Context) (err error) {
	if d.cluster.AuditLog == "" {
		return nil // where somebody brought a cluster, a second one is not ours to start
	}
	records, err := d.server.Export(ctx)
	if err != nil {
		return err
	}
	session := ""
	for _, r := range records {
		if r.Type == "exec.started" {
			session = r.Session
		}
	}
	d.step("Repeated in an empty cluster, the session ends with the same objects")
	dir := filepath.Join(d.dir, "sandbox")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	sandbox, err := rig.StartControlPlane(ctx, dir, d.agent.URL, io.Discard)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sandbox.Close()) }()
	text, err := d.server.Run(ctx, "audit", "replay", session, "--kubeconfig", sandbox.Kubeconfig)
	fmt.Fprintln(d.out, "   $ countersign audit replay "+session+" --kubeconfig sandbox.kubeconfig")
	d.show(text)
	return err
}

// tell prints how to connect an agent to what is running.
func (d *demo) tell() {
	config := fmt.Sprintf(`{"mcpServers": {"countersign": {"type": "http", "url": %q, "headers": {"Authorization": "Bearer %s"}}}}`, d.agent.URL, d.agent.Token)
	fmt.Fprintf(d.out, `
Countersign is running; Ctrl-C stops it.

Claude Code:
  claude mcp add --transport http countersign %s --header "Authorization: Bearer %s"

Cursor (.cursor/mcp.json) and others that read mcpServers:
  %s

Approve what waits:
  bin/countersign approvals list    --config %s
  bin/countersign approvals approve --config %[4]s OP

Read the audit log:
  bin/countersign audit export --config %[4]s

Look at the cluster:
  %s --kubeconfig %s get deployments -A
`, d.agent.URL, d.agent.Token, config, d.server.Config, d.cluster.Kubectl, d.cluster.Kubeconfig)
	if d.chat != nil {
		d.chat.tell(d)
	}
}
