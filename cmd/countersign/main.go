// Command countersign governs what AI agents do to Kubernetes clusters. This
// package is flags, signals and wiring; everything else has a room of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	_ "time/tzdata" // rules may name time zones, and the machine may know none

	"github.com/spf13/cobra"

	"countersign/audit/anchors"
	"countersign/configs"
	"countersign/identity"
	"countersign/kube"
)

// version is set when a release is built.
var version = "dev"

func main() {
	signal.Ignore(syscall.SIGXFSZ) // a limit on the size of files is an error to handle, not an end
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends what does not heed the first, such as a read from a terminal
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// exit is an error that ends the program with a code of its own; all others end it with 1.
type exit struct {
	error
	code int
}

// run is the whole program: it returns 0 only on success, and writes an error
// to stderr, one mistake a line.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	root := command()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	if err := root.ExecuteContext(ctx); err != nil {
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintln(errOut, "countersign: "+strings.TrimSuffix(line, "\n"))
		}
		var own exit
		if errors.As(err, &own) {
			return own.code
		}
		return 1
	}
	return 0
}

// settings are the flags that every command has.
type settings struct{ config string }

func (s *settings) load() (*configs.Config, error) { return configs.Load(s.config) }

func command() *cobra.Command {
	var s settings
	root := &cobra.Command{
		Use:   "countersign",
		Short: "Govern what AI agents do to Kubernetes",
		Long: `Countersign is an MCP server that gives AI agents typed Kubernetes tools instead
of kubectl. Every call is identified, checked against policy, approved by a person
where policy asks for it, run with a credential that the agent never sees, and
recorded before anything happens.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	file := os.Getenv("COUNTERSIGN_CONFIG")
	if file == "" {
		file = "countersign.yaml"
	}
	root.PersistentFlags().StringVarP(&s.config, "config", "c", file, "configuration file (or COUNTERSIGN_CONFIG)")
	root.AddCommand(serveCommand(&s), configCommand(), policyCommand(&s), approvalsCommand(&s), grantsCommand(&s), lockCommand(&s), auditCommand(&s), statusCommand(&s), versionCommand())
	return root
}

// subcommand is what a command does that only groups others: without arguments
// it shows them, and a word that is none of them is an error.
func subcommand(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("there is no command %q; see %s --help", cmd.CommandPath()+" "+args[0], cmd.CommandPath())
	}
	return cmd.Help()
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  countersign version",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "countersign "+version)
			return err
		},
	}
}

// missing are the files of a configuration that are not here as a server needs them.
// That is no mistake of the configuration, which may be checked on another machine.
func missing(c *configs.Config) (all []error) {
	_, issuers := identity.New(issuers(c), c.URL)
	_, clusters := kube.New(clusterConfigs(c), "countersign/"+version, c.RequestTimeout)
	discard := slog.New(slog.DiscardHandler)
	_, slack := newSlack(c, nil, nil, nil, discard)
	var certificate error
	if c.TLS.CertFile != "" {
		_, certificate = newCertificate(c.TLS, discard)
	}
	return slices.DeleteFunc([]error{issuers, clusters, certificate, slack}, func(err error) bool { return err == nil })
}

func configCommand() *cobra.Command {
	config := &cobra.Command{Use: "config", Short: "Check configuration", RunE: subcommand}
	config.AddCommand(&cobra.Command{
		Use:     "check FILE",
		Short:   "Check a configuration file and the policy that it names, reporting every mistake",
		Example: "  countersign config check countersign.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := configs.Load(args[0])
			if err != nil {
				return err
			}
			set, err := loadPolicy(c, c.Policy)
			if err != nil {
				return err
			}
			for _, warning := range issuersAlike(c.Issuers) {
				fmt.Fprintln(cmd.ErrOrStderr(), "countersign: warning: "+warning)
			}
			for _, warning := range warnings(c.Policy, set) {
				fmt.Fprintln(cmd.ErrOrStderr(), "countersign: "+warning)
			}
			for _, err := range missing(c) {
				fmt.Fprintln(cmd.ErrOrStderr(), "countersign: as things are on this machine, the server would not start: "+err.Error())
			}
			for _, w := range c.Audit.Anchors.Witnesses {
				if _, err := anchors.Witness(w.URL, w.Key); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is good; policy %s\n", args[0], set.Digest())
			return err
		},
	})
	return config
}
