package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// shell simulates the few commands that a test or a demonstration runs in a container.
// It touches nothing outside of its streams.
type shell struct {
	in                        io.Reader
	out, errOut               io.Writer
	pod, namespace, container string
	log                       string // the file of the container's log
}

// run returns the command's exit code.
func (s *shell) run(ctx context.Context, argv []string) int {
	name, args := argv[0], argv[1:]
	switch name[strings.LastIndex(name, "/")+1:] {
	case "true":
	case "false":
		return 1
	case "echo":
		end := "\n"
		if len(args) > 0 && args[0] == "-n" {
			args, end = args[1:], ""
		}
		fmt.Fprint(s.out, strings.Join(args, " ")+end)
	case "hostname":
		fmt.Fprintln(s.out, s.pod)
	case "whoami":
		fmt.Fprintln(s.out, "app")
	case "pwd":
		fmt.Fprintln(s.out, "/app")
	case "date":
		fmt.Fprintln(s.out, time.Now().UTC().Format(time.UnixDate))
	case "env":
		fmt.Fprintf(s.out, "HOSTNAME=%s\nNAMESPACE=%s\nCONTAINER=%s\nPATH=/usr/bin:/bin\nHOME=/app\n", s.pod, s.namespace, s.container)
	case "cat":
		return s.cat(args)
	case "seq":
		n, err := strconv.Atoi(strings.Join(args, " "))
		if err != nil {
			return s.fail(1, "seq: want one number")
		}
		w := bufio.NewWriter(s.out)
		for i := range n {
			fmt.Fprintln(w, i+1)
		}
		w.Flush()
	case "sleep":
		seconds, err := strconv.ParseFloat(strings.Join(args, " "), 64)
		if err != nil {
			return s.fail(1, "sleep: want one number of seconds")
		}
		select {
		case <-time.After(time.Duration(seconds * float64(time.Second))):
		case <-ctx.Done():
		}
	case "sh", "bash":
		return s.script(ctx, args)
	default:
		return s.fail(127, fmt.Sprintf("exec: %q: executable file not found in $PATH (this container is simulated)", name))
	}
	return 0
}

func (s *shell) cat(paths []string) int {
	if len(paths) == 0 {
		io.Copy(s.out, s.in)
		return 0
	}
	for _, path := range paths {
		switch path {
		case "/etc/hostname":
			fmt.Fprintln(s.out, s.pod)
		case "/var/log/app.log":
			if code := s.catLog(); code != 0 {
				return code
			}
		case "/etc/os-release":
			fmt.Fprintln(s.out, `NAME="Simulated"`)
		default:
			return s.fail(1, fmt.Sprintf("cat: %s: No such file or directory", path))
		}
	}
	return 0
}

// catLog writes what the container has logged, without what the runtime adds to each line.
func (s *shell) catLog() int {
	data, err := os.ReadFile(s.log)
	if err != nil {
		return s.fail(1, "cat: /var/log/app.log: No such file or directory")
	}
	for line := range strings.Lines(string(data)) {
		if parts := strings.SplitN(line, " ", 4); len(parts) == 4 { // time, stream, tag
			fmt.Fprint(s.out, parts[3])
		}
	}
	return 0
}

// script runs commands from -c or from the input, split at ";", "&&" and line ends. It
// knows "exit N" and ">&2", and no quotes, variables or pipes.
func (s *shell) script(ctx context.Context, args []string) (code int) {
	source := s.in
	if len(args) > 0 {
		if args[0] != "-c" || len(args) < 2 {
			return s.fail(2, "sh: only -c SCRIPT is simulated")
		}
		source = strings.NewReader(args[1])
	}
	for lines := bufio.NewScanner(source); lines.Scan(); {
		for statement := range strings.SplitSeq(strings.ReplaceAll(lines.Text(), "&&", ";&&"), ";") {
			words := strings.Fields(statement)
			if len(words) > 0 && words[0] == "&&" {
				if words = words[1:]; code != 0 {
					continue
				}
			}
			if len(words) == 0 {
				continue
			}
			if words[0] == "exit" {
				if len(words) > 1 {
					code, _ = strconv.Atoi(words[1])
				}
				return code
			}
			command := *s
			if words[len(words)-1] == ">&2" {
				words, command.out = words[:len(words)-1], s.errOut
			}
			if len(words) > 0 {
				code = command.run(ctx, words)
			}
		}
	}
	return code
}

func (s *shell) fail(code int, message string) int {
	fmt.Fprintln(s.errOut, message)
	return code
}
