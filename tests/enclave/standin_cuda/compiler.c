/* What the stand-in driver loads when its context is made: nothing but a name. */
int standin_compiler(void) { return 0; }
