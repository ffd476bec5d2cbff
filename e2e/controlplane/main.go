// Command controlplane builds and runs a real Kubernetes control plane from source,
// for tests, demonstrations and measurements on one machine.
//
// This room owns everything below the Kubernetes API: etcd, kube-apiserver,
// kube-controller-manager, kube-scheduler and kwok, which simulates nodes and pods;
// their build, their credentials, their start and their end. It does not own what is
// done with the cluster: it knows nothing of Countersign, its policies or its tools,
// and nothing of Countersign imports it. Callers run it as a process and read one
// line of JSON from its standard output.
//
// The cluster is thrown away with the process. All listeners are on 127.0.0.1, and no
// command sent to a simulated pod runs on this machine: see node.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

const usage = `usage:
  controlplane build [--module DIR]
  controlplane up --dir DIR [--nodes N] [--audience URL]... [--all-apis] [--stdin] [--module DIR]

build compiles the control plane into the cache folder and prints that folder.
up does the same when needed, starts a cluster in DIR, prints one line of JSON when it
is ready, and runs until SIGINT or SIGTERM, or with --stdin until its input closes.
At SIGUSR1 it kills the API server, starts it again, and prints the line once more.
DIR must be new, empty, or of an earlier cluster, whose files are removed.
`

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()

	err := command(ctx, cancel, args, stdin, stdout, stderr)
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, new(usageError)):
		fmt.Fprintf(stderr, "controlplane: %v\n%s", err, usage)
		return 2
	default:
		fmt.Fprintf(stderr, "controlplane: %v\n", err)
		return 1
	}
}

// usageError marks a mistake in the arguments, which is answered with the usage text.
type usageError struct{ error }

func command(ctx context.Context, cancel func(), args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return usageError{errors.New("no command given")}
	}

	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	module := flags.String("module", ".", "folder of the e2e/controlplane module")

	switch args[0] {
	case "build":
		if err := parse(flags, args[1:]); err != nil {
			return err
		}
		bin, err := build(ctx, *module, stderr)
		if err != nil {
			return err
		}
		fmt.Fprintln(stdout, bin)
		return nil

	case "up":
		var audiences list
		dir := flags.String("dir", "", "folder for the cluster's state, credentials and logs")
		nodes := flags.Int("nodes", 3, "number of simulated nodes")
		allAPIs := flags.Bool("all-apis", false, "serve every version of every kind, alpha and beta ones too")
		watchStdin := flags.Bool("stdin", false, "stop when standard input closes")
		flags.Var(&audiences, "audience", "token audience to accept besides the issuer (repeatable)")
		if err := parse(flags, args[1:]); err != nil {
			return err
		}
		if *dir == "" {
			return usageError{errors.New("up needs --dir")}
		}
		if *nodes < 0 {
			return usageError{errors.New("--nodes cannot be negative")}
		}
		if *watchStdin {
			go func() {
				io.Copy(io.Discard, stdin)
				cancel()
			}()
		}
		bin, err := build(ctx, *module, stderr)
		if err != nil {
			return err
		}
		return up(ctx, options{bin: bin, dir: *dir, nodes: *nodes, audiences: audiences, allAPIs: *allAPIs, freePorts: freePorts}, stdout)

	case "help", "-h", "--help":
		fmt.Fprint(stdout, usage)
		return nil
	}
	return usageError{fmt.Errorf("unknown command %q", args[0])}
}

func parse(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return usageError{err}
	}
	if flags.NArg() > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", flags.Arg(0))}
	}
	return nil
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(value string) error {
	if value == "" || strings.Contains(value, ",") {
		return errors.New("must be one non-empty value without commas")
	}
	*l = append(*l, value)
	return nil
}
