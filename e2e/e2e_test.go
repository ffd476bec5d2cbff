// Package e2e shows what a user relies on, through the real binary, the real
// MCP wire and a real control plane. The behaviours are the scripts below
// testdata; what a script cannot do, such as ending the server at one exact
// point, stands in Go beside it.
package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"countersign/approvals/slack/slacktest"
	"countersign/e2e/rig"
	"countersign/policy"
)

// audience is the canonical URL of every server in these tests; each listens on
// a port of its own.
const audience = "http://127.0.0.1/mcp"

// world is what all tests share. Each test has a namespace of its own.
var world struct {
	cluster *rig.ControlPlane
	binary  string
	// faulty is the same with the hooks of the build tag crash.
	faulty func() (string, error)
	token  string // of the agent agents/oncall
	other  string // of another agent, agents/other
	admin  string // for the API server, of a service account that may do everything
}

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("end-to-end tests are left out with -short")
		os.Exit(0)
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "countersign-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := prepare(ctx, dir); err != nil {
		fmt.Fprintln(os.Stderr, "preparing:", err)
		return 1
	}
	defer world.cluster.Close()
	if flag.Lookup("test.bench").Value.String() != "" {
		version, err := kubernetesVersion(ctx)
		if err != nil {
			fmt.Fprintln(os.Stderr, "preparing:", err)
			return 1
		}
		fmt.Println("kubernetes:", version) // as tools that read benchmarks expect it
	}
	return m.Run()
}

func prepare(ctx context.Context, dir string) (err error) {
	if world.binary, err = rig.BuildServer(ctx, dir, raceFlag...); err != nil {
		return err
	}
	world.faulty = sync.OnceValues(func() (string, error) {
		faulty := filepath.Join(dir, "faulty")
		if err := os.Mkdir(faulty, 0o700); err != nil {
			return "", err
		}
		// Without the race detector, which only makes a hundred starts slower.
		return rig.BuildServer(context.Background(), faulty, "-tags", "crash")
	})
	if world.cluster, err = rig.StartControlPlane(ctx, dir, audience, os.Stderr, soakCluster()...); err != nil {
		return err
	}
	const accounts = `{apiVersion: v1, kind: List, items: [
		{apiVersion: v1, kind: Namespace, metadata: {name: agents}},
		{apiVersion: v1, kind: ServiceAccount, metadata: {name: oncall, namespace: agents}},
		{apiVersion: v1, kind: ServiceAccount, metadata: {name: other, namespace: agents}},
		{apiVersion: v1, kind: ServiceAccount, metadata: {name: countersign, namespace: agents}},
		{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: countersign},
			roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin},
			subjects: [{kind: ServiceAccount, name: countersign, namespace: agents}]}]}`
	if _, err = world.cluster.Run(ctx, accounts, "apply", "-f", "-"); err != nil {
		return err
	}
	if world.token, err = token(ctx, "oncall", audience); err != nil {
		return err
	}
	if world.other, err = token(ctx, "other", audience); err != nil {
		return err
	}
	world.admin, err = token(ctx, "countersign", world.cluster.Issuer)
	return err
}

func token(ctx context.Context, account, audience string) (string, error) {
	return world.cluster.Run(ctx, "", "create", "token", account, "-n", "agents", "--audience", audience, "--duration", "1h")
}

var namespaces atomic.Int64

// newNamespace makes a namespace with a Deployment "web" of two replicas.
func newNamespace(ctx context.Context) (string, error) {
	name := fmt.Sprintf("shop-%d", namespaces.Add(1))
	objects := fmt.Sprintf(`{apiVersion: v1, kind: List, items: [
		{apiVersion: v1, kind: Namespace, metadata: {name: %[1]s}},
		{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: %[1]s}, spec: {replicas: 2,
			selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}},
			spec: {containers: [{name: web, image: "registry.example/web:1.0"}]}}}}]}`, name)
	_, err := world.cluster.Run(ctx, objects, "apply", "-f", "-")
	return name, err
}

// leave lets a namespace go: the simulated nodes take only so many pods.
func leave(namespace string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := world.cluster.Run(ctx, "", "delete", "namespace", namespace, "--wait=false", "--ignore-not-found"); err != nil {
		fmt.Fprintln(os.Stderr, "leaving namespace", namespace+":", err)
	}
}

// newServer writes a configuration into dir, with the guarded policy and an
// approver set "operators", and prepares a server for it.
func newServer(dir, kubeconfig string) (*rig.Server, error) {
	address, err := rig.FreeAddress()
	if err != nil {
		return nil, err
	}
	guarded, err := os.ReadFile("../configs/policy/guarded/guarded.yaml")
	if err != nil {
		return nil, err
	}
	files := map[string]string{"countersign.yaml": fmt.Sprintf(`
listen: %s
url: %s
data: data
policy: policy
issuers: [{url: %q, caFile: %q, kubernetes: true}]
clusters: [{name: local, kubeconfig: %q}]
approvers: {operators: {local: ["*"]}}
approvals: {wait: 100ms}
limits: {perPrincipal: 10000, perAddress: 10000} # these tests ask faster than agents do
`, address, audience, world.cluster.Issuer, world.cluster.CA, kubeconfig)}
	if _, err := os.Stat(filepath.Join(dir, "policy")); err != nil {
		files["policy/guarded.yaml"] = string(guarded)
	}
	return &rig.Server{Binary: world.binary, Config: filepath.Join(dir, "countersign.yaml"), URL: "http://" + address + "/mcp"}, rig.WriteFiles(dir, files)
}

// script is what the commands of one script share.
type script struct {
	server *rig.Server
	agents map[string]*rig.Agent
	slack  *slacktest.Server // nil without one
	log    *os.File
}

type scriptKey struct{}

func TestScripts(t *testing.T) { testscript.Run(t, scripts("testdata")) }

// scripts are those of one folder.
func scripts(dir string) testscript.Params {
	return testscript.Params{
		Dir:                 dir,
		Deadline:            time.Now().Add(5 * time.Minute),
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			ctx := context.Background()
			server, err := newServer(env.WorkDir, world.cluster.Kubeconfig)
			if err != nil {
				return err
			}
			namespace, err := newNamespace(ctx)
			if err != nil {
				return err
			}
			log, err := os.Create(filepath.Join(env.WorkDir, "server.log"))
			if err != nil {
				return err
			}
			server.Log = log
			bin := filepath.Join(env.WorkDir, "bin")
			if err := os.Mkdir(bin, 0o700); err != nil {
				return err
			}
			for name, target := range map[string]string{"countersign": world.binary, "kubectl": world.cluster.Kubectl} {
				if err := os.Symlink(target, filepath.Join(bin, name)); err != nil {
					return err
				}
			}
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("KUBECONFIG", world.cluster.Kubeconfig)
			env.Setenv("COUNTERSIGN_CONFIG", server.Config)
			env.Setenv("NS", namespace)
			env.Setenv("TOKEN", world.token)
			env.Setenv("URL", server.URL)
			s := &script{server: server, log: log, agents: map[string]*rig.Agent{
				"oncall": {URL: server.URL, Token: world.token}, "other": {URL: server.URL, Token: world.other},
			}}
			env.Values[scriptKey{}] = s
			env.Defer(func() {
				leave(namespace)
				log.Close()
				server.Stop()
				if records, err := server.Export(ctx); err == nil { // else the script had no server
					called.add(records)
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"server": serverCommand, "agent": agentCommand, "post": postCommand, "records": recordsCommand, "until": untilCommand, "policy": policyCommand,
		},
	}
}

// server start|stop|kill: runs the server of the script's countersign.yaml.
func serverCommand(ts *testscript.TestScript, neg bool, args []string) {
	s := ts.Value(scriptKey{}).(*script)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	switch strings.Join(args, " ") {
	case "start":
		err = s.server.Start(ctx)
	case "stop":
		err = s.server.Stop()
	case "kill":
		err = s.server.Kill()
	default:
		ts.Fatalf("usage: server start|stop|kill")
	}
	if err != nil {
		fmt.Fprintln(ts.Stderr(), err)
	}
	if (err != nil) != neg {
		ts.Fatalf("server %s: %v", args[0], err)
	}
}

// policy FILE: makes the file the server's policy, the only one, and waits until
// it is in force; with ! until the server says that it is not.
func policyCommand(ts *testscript.TestScript, neg bool, args []string) {
	s := ts.Value(scriptKey{}).(*script)
	folder := ts.MkAbs("policy")
	entries, err := os.ReadDir(folder)
	ts.Check(err)
	for _, entry := range entries {
		ts.Check(os.Remove(filepath.Join(folder, entry.Name())))
	}
	ts.Check(os.WriteFile(filepath.Join(folder, "policy.yaml"), []byte(ts.ReadFile(args[0])), 0o600))
	digest, err := policy.Digest(os.DirFS(folder))
	ts.Check(err)
	ts.Check(s.server.Signal(syscall.SIGHUP))
	deadline := time.Now().Add(time.Minute)
	for {
		text, err := s.server.Run(context.Background(), "status")
		if neg == (err != nil) && strings.Contains(text, digest) != neg {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("the server never took it: %s %v", text, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// agent [-as NAME] list: prints the tools that are shown.
// agent [-as NAME] request METHOD JSON: sends any request and prints its result.
// agent [-as NAME] TOOL JSON: calls a tool and prints what a model would read;
// $OP is the operation after it. With ! the answer must be an error.
func agentCommand(ts *testscript.TestScript, neg bool, args []string) {
	s := ts.Value(scriptKey{}).(*script)
	name := "oncall"
	if args[0] == "-as" {
		name, args = args[1], args[2:]
	}
	agent := s.agents[name]
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if agent.Session == "" {
		ts.Check(agent.Connect(ctx))
	}
	if args[0] == "list" {
		tools, err := agent.Tools(ctx)
		ts.Check(err)
		fmt.Fprintln(ts.Stdout(), strings.Join(tools, "\n"))
		return
	}
	if args[0] == "request" {
		result, err := agent.Request(ctx, args[1], json.RawMessage(args[2]))
		if err != nil {
			result = []byte(err.Error())
		}
		fmt.Fprintln(ts.Stdout(), string(result))
		if (err != nil) != neg {
			ts.Fatalf("the agent's request: %v", err)
		}
		return
	}
	// A file's content can stand for an argument: @FILE, as a JSON string.
	arguments := args[1]
	for _, m := range fileArgument.FindAllStringSubmatch(arguments, -1) {
		arguments = strings.Replace(arguments, m[0], fmt.Sprintf("%q", ts.ReadFile(m[1])), 1)
	}
	answer, err := agent.Call(ctx, args[0], arguments)
	if err != nil {
		answer.IsError, answer.Text = true, err.Error()
	}
	fmt.Fprintln(ts.Stdout(), answer.Text)
	if answer.Structured.Op != "" {
		ts.Setenv("OP", answer.Structured.Op)
	}
	if answer.IsError != neg {
		ts.Fatalf("the agent's call: error is %v", answer.IsError)
	}
}

var fileArgument = regexp.MustCompile(`"@([a-z0-9._-]+)"`)

// post FILE: posts the file's bytes as a message, as oncall, and prints the
// HTTP status and the answer.
func postCommand(ts *testscript.TestScript, neg bool, args []string) {
	s := ts.Value(scriptKey{}).(*script)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	agent := s.agents["oncall"]
	if agent.Session == "" {
		ts.Check(agent.Connect(ctx))
	}
	status, body, err := agent.Post(ctx, []byte(ts.ReadFile(args[0])))
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "HTTP %d\n%s\n", status, body)
	if (status >= 400) != neg {
		ts.Fatalf("HTTP %d", status)
	}
}

// records [OP]: prints type and outcome of every record, or of one operation's. A request
// that is sent again under another Audit-ID, since a controller had just written the
// object's status, is started once for a script, which cannot know of it.
func recordsCommand(ts *testscript.TestScript, _ bool, args []string) {
	s := ts.Value(scriptKey{}).(*script)
	records, err := s.server.Export(context.Background())
	ts.Check(err)
	started := map[string]string{} // Audit-IDs by operation
	for i, r := range records {
		if r.Seq != uint64(i)+1 {
			ts.Fatalf("record %d follows record %d", r.Seq, i)
		}
		if r.Type == "exec.started" {
			var ids []string
			for _, a := range r.Actions {
				ids = append(ids, a.AuditID)
			}
			before, now := started[r.Op], strings.Join(ids, " ")
			started[r.Op] = now
			if before != "" && before != now {
				continue
			}
		}
		if len(args) == 0 || r.Op == args[0] {
			fmt.Fprintln(ts.Stdout(), strings.TrimSpace(r.Type+" "+r.Outcome))
		}
	}
}

// until REGEXP COMMAND...: runs a command again and again until its output matches.
func untilCommand(ts *testscript.TestScript, _ bool, args []string) {
	want := regexp.MustCompile(args[0])
	deadline := time.Now().Add(time.Minute)
	for {
		var out strings.Builder
		s := ts.Value(scriptKey{}).(*script)
		var text string
		var err error
		if args[1] == "countersign" {
			text, err = s.server.Run(context.Background(), args[2:]...)
		} else {
			text, err = world.cluster.Run(context.Background(), "", args[2:]...)
		}
		fmt.Fprint(&out, text)
		if err == nil && want.MatchString(out.String()) {
			fmt.Fprintln(ts.Stdout(), out.String())
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s never said %s: %s %v", strings.Join(args[1:], " "), args[0], out.String(), err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
