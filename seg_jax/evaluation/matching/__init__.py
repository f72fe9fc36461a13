"""Which text fits which image when one attribute differs: the protocol of SPEC."""
