package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"countersign/audit"
	"countersign/audit/anchors"
	"countersign/kube"
)

// checkpointsCommand is audit checkpoints.
func checkpointsCommand(s *settings) *cobra.Command {
	var kubeconfig, context, namespace string
	checkpoints := &cobra.Command{
		Use:   "checkpoints",
		Short: "Print the log's checkpoints as they can be read back from where they were anchored",
		Long: `Print the log's checkpoints as they can be read back from where they were anchored,
one signed note after the other, the form that audit verify --checkpoint reads:
from the file that the configuration names or, with --namespace, from the
ConfigMaps of that namespace, with a credential that may list them. The latter
takes no configuration. Nothing is verified here: audit verify does that.`,
		Example: "  countersign audit checkpoints > checkpoints\n  countersign audit checkpoints --kubeconfig auditor --namespace countersign-anchors > checkpoints",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := bufio.NewWriter(cmd.OutOrStdout())
			if namespace != "" {
				err := configMapCheckpoints(cmd, kubeconfig, context, namespace, out)
				return errors.Join(err, out.Flush())
			}
			if kubeconfig != "" || context != "" {
				return errors.New("--kubeconfig and --context need --namespace: the one that audit.anchors.configMap names")
			}
			config, err := s.load()
			if err != nil {
				return err
			}
			path := config.AnchorFile()
			if path == "" {
				return errors.New("audit.anchors.file is none; read what is elsewhere, with --namespace")
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return fmt.Errorf("reading checkpoints: %w", err)
			}
			err = writeCheckpoints(out, path, data)
			return errors.Join(err, out.Flush())
		},
	}
	checkpoints.Flags().StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig of the cluster with the ConfigMaps; inside of a pod, its own credential when absent")
	checkpoints.Flags().StringVar(&context, "context", "", "its context; the current one when absent")
	checkpoints.Flags().StringVar(&namespace, "namespace", "", "namespace of the ConfigMaps")
	return checkpoints
}

// writeCheckpoints writes those of a text, an empty line after each. What is none
// is an error that says where from, after the others.
func writeCheckpoints(w io.Writer, from string, text []byte) error {
	all := audit.Checkpoints(text)
	if len(all) == 0 {
		return fmt.Errorf("%s holds no checkpoint", from)
	}
	var damaged []error
	for i, signed := range all {
		var unverified *note.UnverifiedNoteError
		if _, err := note.Open(signed, nil); !errors.As(err, &unverified) {
			damaged = append(damaged, fmt.Errorf("%s: checkpoint %d of %d is damaged: %w", from, i+1, len(all), err))
			continue
		}
		if _, err := w.Write(append(signed, '\n')); err != nil {
			return err
		}
	}
	return errors.Join(damaged...)
}

func configMapCheckpoints(cmd *cobra.Command, kubeconfig, context, namespace string, w io.Writer) error {
	const cluster = "auditor" // as kube calls it here
	clusters, err := kube.New([]kube.Config{{Name: cluster, Kubeconfig: kubeconfig, Context: context}}, "countersign/"+version, 30*time.Second)
	if err != nil {
		return err
	}
	var damaged []error
	n := 0
	err = clusters.ConfigMaps(cmd.Context(), cluster, namespace, anchors.Label+"="+anchors.LabelValue, func(name string, data map[string]string) error {
		n++
		damaged = append(damaged, writeCheckpoints(w, "ConfigMap "+name, []byte(data[anchors.DataKey])))
		return nil
	})
	switch {
	case err != nil:
		err = fmt.Errorf("reading the ConfigMaps of namespace %s: %w", namespace, err)
	case n == 0:
		err = fmt.Errorf("namespace %s has no ConfigMap with the label %s=%s", namespace, anchors.Label, anchors.LabelValue)
	}
	return errors.Join(append(damaged, err)...)
}
